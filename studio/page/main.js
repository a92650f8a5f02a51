// Starts the studio's page and ties its parts together: the store (document), the views that show it, the
// player, and the server's events. Read `Studio`, then `start`.

import {actionsOf} from "./actions.js";
import {call, listen} from "./api.js";
import {Checked} from "./check.js";
import {aboutSelection, Inspector} from "./inspector.js";
import {listenToKeys} from "./keys.js";
import {LyricsBox} from "./lyrics.js";
import {Panels} from "./panels.js";
import {Player} from "./player.js";
import {Store} from "./store.js";
import {Tap} from "./tap.js";
import {stamp} from "./timeline.js";
import {TimelineView} from "./timelineview.js";
import {changes, flat} from "./words.js";

const PLAY = "M7 4v16l13-8z", PAUSE = "M6 4h4v16H6zM14 4h4v16h-4z";
const byId = id => document.getElementById(id);
const NEAR_S = 1;                  // of a changed place, from which a new take is played
const NEWS_MS = 12_000;            // how long good news stays
const OWN = "studio jobs";         // of this tab: their takes are played when done, after a reload, too

class Studio {
  constructor(state) {
    Object.assign(this, {selected: null, range: null, changed: {words: new Set(), count: 0}, song: {},
      compared: [], jobs: JSON.parse(sessionStorage.getItem(OWN) ?? "[]"), pending: 0, lost: ""});
    for (const name of ["say", "fail"]) this[name] = this[name].bind(this);
    this.store = new Store(state);
    this.player = new Player(byId("audio"), byId("other"));
    this.checked = new Checked(() => this.render(), this.fail);
    this.view = new TimelineView(this, byId("scroll"));
    this.lyrics = new LyricsBox(this, byId("lyrics"));
    this.inspector = new Inspector(this, ["title", "artist", "style", "bpm", "seed"].map(byId), byId("word"));
    this.panels = new Panels(this);
    this.tap = new Tap(this, byId("tapping"));
    this.actions = actionsOf(this);
    this.store.addEventListener("change", () => this.render());
    this.store.addEventListener("news", event => this.say(...event.detail));
    this.player.addEventListener("time", () => this.showTime());
  }

  // One line for the person; "" takes it away. A lost connection stays until it is back.
  say(text, kind = "") {
    const news = byId("news");
    news.textContent = text || this.lost;
    news.className = kind;
    clearTimeout(this.saying);
    if (text && !kind) this.saying = setTimeout(() => this.say(""), NEWS_MS);
  }

  // Tell what the server refused; anything else is a fault of this page, for the console.
  fail(failure) {
    if (failure.status === undefined) throw failure;
    this.say(failure.message, "error");
  }

  select(place, {quiet = false} = {}) {
    if (place === this.selected) return;
    this.selected = place;
    if (!quiet && place === null && document.activeElement.closest(".block")) document.activeElement.blur();
    this.render();
  }

  setRange(range) {
    this.range = range;
    if (this.player.loop) this.player.span = range;
    this.render();
  }

  // The range from the selected word to another one.
  extendTo(place) {
    const words = flat(this.store.doc.lines), from = words[this.selected ?? place], to = words[place];
    this.setRange([Math.min(from.start, to.start), Math.max(from.end, to.end)]);
  }

  setSpeed(rate) {
    this.player.rate = rate;
    byId("speed").value = rate;
  }

  own(job, yes = true) {
    this.jobs = this.jobs.filter(other => other !== job).concat(yes ? job : []);
    sessionStorage.setItem(OWN, JSON.stringify(this.jobs));
  }

  // Show everything, once a frame however often it is asked for.
  render() {
    this.pending ||= requestAnimationFrame(() => { this.pending = 0; this.show(); });
  }

  show() {
    const {store, player, view} = this, {doc} = store, words = flat(doc.lines), take = store.take();
    if (this.selected >= words.length) this.selected = words.length ? words.length - 1 : null;
    const parts = [doc.lines, doc.style, take];
    if (parts.some((part, k) => part !== this.compared[k])) {
      this.compared = parts;
      this.changed = take && take.kind !== "recording" ? changes(doc, take) : {words: new Set(), count: 0};
    }
    player.load(doc.take, this.before(take));
    this.checked.look(doc);
    this.song = this.nextSong(words, take);
    byId("sing").textContent = this.song.label;
    byId("sing").disabled = !words.length || !this.song.request;
    const on = {loop: player.loop, compare: player.second, spectrogram: view.spectrogram};
    for (const name in on) document.querySelector(`[data-do=${name}]`).setAttribute("aria-pressed", on[name]);
    const can = {undo: store.undos.length, redo: store.redos.length, again: words.length,
      compare: player.before !== null, toggle: doc.take !== null};
    for (const name in can) document.querySelector(`[data-do=${name}]`).disabled = !can[name];
    byId("of").textContent = aboutSelection(this);
    document.title = doc.title ? `${doc.title} \u2013 Studio` : "Studio";
    for (const part of [this.lyrics, this.inspector, this.panels]) part.render();
    view.invalidate();
    this.showTime();
  }

  // The take to compare one with: that of which it is an edit, else the one before.
  before(take) {
    if (!take) return null;
    const earlier = this.store.takes.filter(other => Number(other.id) < Number(take.id));
    return (this.store.take(take.before) ?? earlier.at(-1))?.id ?? null;
  }

  // What the main button would do: its label and its request.
  nextSong(words, take) {
    const {count} = this.changed;
    if (!take || take.kind === "recording") return {label: "Sing", request: {take: null}};
    if (!count) return this.store.seedOf(take) === this.store.doc.seed ? {label: "All sung"}
      : {label: "Sing with this seed", request: {take: null}};
    if (this.changed.words.size === words.length) return {label: "Sing all", request: {take: null}};
    return {label: `Sing ${count} changed word${count > 1 ? "s" : ""}`, request: {take: take.id}};
  }

  showTime() {
    const {player, view} = this, icon = player.paused ? PLAY : PAUSE;
    const path = byId("play").querySelector("path");
    byId("clock").textContent = `${stamp(player.time, 2)} / ${stamp(view.duration, 2)}`;
    if (path.getAttribute("d") !== icon) {
      path.setAttribute("d", icon);
      byId("play").setAttribute("aria-label", player.paused ? "Play" : "Pause");
    }
    view.invalidate();
    if (!player.paused) this.ticking ||= requestAnimationFrame(() => { this.ticking = 0; player.tick(); });
  }

  // An event of the server.
  async hear(event) {
    const {store} = this;
    if (event.type !== "job") return store.refresh().catch(this.fail);
    const {job} = event, over = ["done", "failed", "cancelled"].includes(job.state);
    if (store.job?.id === job.id) store.job = job;
    if (over || store.job?.id !== job.id) await store.refresh().catch(this.fail);      // the queue is another
    this.render();
    if (job.state === "failed") this.say(job.error, "error");
    if (job.state === "cancelled") this.say("Cancelled.");
    if (job.state === "done" && this.jobs.includes(job.id)) this.present(store.take(job.take));
    if (over) this.own(job.id, false);
  }

  // Ask how things are; a song of this tab may have been sung while nobody listened.
  async catchUp() {
    await this.store.refresh().catch(this.fail);
    const {job} = this.store;
    if (this.jobs.includes(job?.id)) await this.hear({type: "job", job});
  }

  // Play a take that has just been sung, from shortly before what is new.
  present(take) {
    if (!take) return;
    const seed = this.store.seedOf(take), shown = {take: take.id, seed};
    this.store.edit(doc => doc.take === take.id && doc.seed === seed ? doc : {...doc, ...shown}, "sung");
    this.show();
    this.say(take.note);
    const from = Math.max(0, (take.spans[0]?.[0] ?? flat(take.lines)[0]?.start ?? 0) - NEAR_S);
    this.player.play(from);
    this.view.reveal(from, from);
    this.view.follows.reset();
  }

  async take(file) {
    this.say(`Reading ${file.name} \u2026`);
    try {
      if (!await this.lyrics.flush()) return;
      await this.store.save();
      const path = `/api/import?name=${encodeURIComponent(file.name)}`;
      const {document: found, take} = await call("POST", path, file);
      await this.store.refresh();
      this.store.edit(doc => ({...found, take: take ?? doc.take}));
      const note = this.store.take(take)?.note;
      this.say(`${file.name} is here${note ? `, ${note}` : ""}. Undo brings back what was here before.`);
    } catch (failure) {
      this.fail(failure);
    }
  }
}

function listenToFiles(studio) {
  const drop = byId("drop");
  byId("file").onchange = event => {
    if (event.target.files[0]) studio.take(event.target.files[0]);
    event.target.value = "";
  };
  addEventListener("dragover", event => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    drop.hidden = false;
  });
  addEventListener("dragleave", event => { if (!event.relatedTarget) drop.hidden = true; });
  addEventListener("drop", event => {
    drop.hidden = true;
    if (!event.dataTransfer.files[0]) return;
    event.preventDefault();
    studio.take(event.dataTransfer.files[0]);
  });
}

async function start() {
  history.replaceState(null, "", "/");                           // no token in sight, nor in a bookmark
  const studio = new Studio(await call("GET", "/api/state"));
  listenToKeys(studio.actions);
  listenToFiles(studio);
  addEventListener("click", event => {
    const action = event.target.closest("[data-do]")?.dataset.do;
    if (action) studio.actions[action]();
  });
  byId("speed").onchange = event => studio.setSpeed(Number(event.target.value));
  byId("variation").oninput = event => {
    const {valueAsNumber: value} = event.target;
    document.querySelector("output").textContent = value < 1 ? value.toFixed(2) : "new";
  };
  for (const audio of [byId("audio"), byId("other")])
    audio.onerror = () => studio.say("This take cannot be played.", "error");
  listen(event => studio.hear(event), again => {
    studio.lost = "";
    if (again) studio.say("Connected again.");
    studio.catchUp();
  }, text => {
    studio.lost = text;
    studio.say(text, "error");
  });
  studio.render();
}

start().catch(failure => { byId("news").textContent = failure.message; throw failure; });
