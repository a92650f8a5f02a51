// What keys and buttons do, by the names that keys.js and index.html use. Each is a function without
// arguments.

import {call} from "./api.js";
import {edged, flat, joined, moved, replaced, split} from "./words.js";

const JUMP_S = 2, ZOOM = 1.4;
const byId = id => document.getElementById(id);
const random = () => Math.floor(Math.random() * 2 ** 31);

export function actionsOf(studio) {
  const {store, player, view} = studio;
  const words = () => flat(store.doc.lines);
  const word = () => studio.selected === null ? null : words()[studio.selected];

  // Selecting, by keys: the focus goes along.
  const go = place => {
    if (!words().length) return;
    const i = Math.max(0, Math.min(place, words().length - 1)), {start, end} = words()[i];
    studio.select(i);
    view.reveal(start, end);
    view.blocks.focus();
    if (player.paused) player.seek(start);
  };
  // The word at the playhead, where nothing is selected: the last that began.
  const here = () => studio.selected ?? words().findLastIndex(({start}) => start <= player.now);
  const line = by => {
    const at = words()[Math.max(0, here())], to = words().findIndex(({line}) => line === at.line + by);
    if (to >= 0) go(to);
  };
  const range = by => {
    const at = word();
    if (!at) return;
    const last = studio.range ? words().findLastIndex(({start}) => start < studio.range[1]) : studio.selected;
    studio.extendTo(Math.max(studio.selected, Math.min(last + by, words().length - 1)));
  };

  // Changing the selected word.
  const edit = (change, key = "") => {
    if (word()) store.edit(doc => change(doc, studio.selected, word()), key && `${key} ${studio.selected}`);
  };
  const nudge = by => () => edit((doc, i, {start}) => moved(doc, i, start + by), "move");
  const push = (edge, by) => () => edit((doc, i, old) => edged(doc, i, edge, old[edge] + by), edge);
  const field = name => () => {
    if (!word()) return;
    studio.show();                                               // the fields may still be another word's
    byId("word").elements[name].focus();
    byId("word").elements[name].select();
  };

  // Singing. Everything typed is on the server before.
  const sing = async request => {
    try {
      if (!await studio.lyrics.flush()) return;
      await store.save();
      const {job} = await call("POST", "/api/sing", {revision: store.revision, take: null, span: null,
        seed: null, variation: null, best_of: 1, ...request});
      studio.own(job.id);
      studio.say("");
      await store.refresh();
    } catch (failure) {
      if (failure.status === 409) await store.refresh().catch(studio.fail);
      studio.fail(failure);
    }
  };
  const selection = () => studio.range ?? (word() ? [word().start, word().end] : null);

  return {
    toggle() {
      if (!player.take) return studio.say("Nothing to hear yet: sing first, or drop a song.");
      player.span = player.loop ? studio.range : null;
      if (player.span && player.paused && (player.time < player.span[0] || player.time >= player.span[1]))
        player.seek(player.span[0]);
      player.toggle();
      view.follows.reset();
    },
    playSelection() { if (selection()) player.play(selection()[0], selection()); },
    loop() {
      player.loop = !player.loop;
      player.span = player.loop && studio.range && !player.paused ? studio.range : null;
      studio.render();
    },
    compare() {
      player.compare();
      if (player.before === null) studio.say("There is no take before this one.");
      studio.render();
    },
    slow50: () => studio.setSpeed(0.5), slow75: () => studio.setSpeed(0.75),
    slow100: () => studio.setSpeed(1),
    back: () => player.seek(player.time - JUMP_S), ahead: () => player.seek(player.time + JUMP_S),

    async sing() {
      await studio.lyrics.flush();
      studio.show();
      if (studio.song.request) sing(studio.song.request);
    },
    again() {
      const value = byId("variation").valueAsNumber, current = store.take();
      const again = current && current.kind !== "recording" && (selection() || value < 1);
      if (!again) return sing({take: null, seed: random()});
      const span = (selection() ?? [0, Infinity]).map(time => Math.min(time, current.duration));
      sing({take: current.id, span, seed: random(), variation: value < 1 ? value : null});
    },
    cancel: () => studio.panels.cancel(store.job),

    previousWord: () => go(here() - 1), nextWord: () => go(here() + 1),
    previousLine: () => line(-1), nextLine: () => line(1),
    firstWord: () => go(0), lastWord: () => go(Infinity),
    lessRange: () => range(-1), moreRange: () => range(1),
    lineRange() {
      const row = word() && words().filter(({line}) => line === word().line);
      if (row) studio.setRange([row[0].start, row.at(-1).end]);
    },
    escape() {
      if (studio.tap.on) studio.tap.end();
      else if (view.blocks.cancel()) return;
      else if (studio.range) studio.setRange(null);
      else studio.select(null);
    },

    earlier10: nudge(-0.01), later10: nudge(0.01), earlier50: nudge(-0.05), later50: nudge(0.05),
    startEarlier10: push("start", -0.01), startLater10: push("start", 0.01),
    startEarlier50: push("start", -0.05), startLater50: push("start", 0.05),
    longer10: push("end", 0.01), shorter10: push("end", -0.01),
    longer50: push("end", 0.05), shorter50: push("end", -0.05),
    rename: field("word"), pronounce: field("phoneme"),
    split: () => edit((doc, i, {start, end}) => {
      const at = player.time > start && player.time < end ? player.time : (start + end) / 2;
      return split(doc, i, at);
    }),
    join: () => edit((doc, i) => {
      const done = joined(doc, i);
      if (!done) studio.say("It is the last word of its line.");
      return done;
    }),
    remove: () => edit((doc, i) => replaced(doc, i)),
    tap: () => studio.tap.begin().catch(studio.fail),
    undo: () => store.undo(), redo: () => store.redo(),

    zoomIn: () => view.zoom(ZOOM), zoomOut: () => view.zoom(1 / ZOOM), fit: () => view.zoom(0),
    spectrogram() {
      view.spectrogram = !view.spectrogram;
      studio.render();
    },
    help: () => byId("help").showModal(),
    open: () => byId("file").click(),
  };
}
