// Lists beside the time line: takes, the job that runs and those that wait, problems, exports, and the keys'
// help.

import {call} from "./api.js";
import {KEYS, keyOf, shown} from "./keys.js";
import {make, stamp} from "./timeline.js";
import {flat} from "./words.js";

const byId = id => document.getElementById(id);
const RUNS = ["queued", "singing"];
const NAMES = {ultrastar: "UltraStar", textgrid: "TextGrid", page: "Page (HTML)", account: "Account (JSON)"};

function button(parent, text, name, act) {
  const made = make("button", parent, text);
  made.type = "button";
  if (name) made.setAttribute("aria-label", name);
  made.onclick = act;
  return made;
}

export class Panels {
  constructor(studio) {
    Object.assign(this, {studio, seen: {}});
    this.writeHelp();
    const menu = byId("export");
    menu.addEventListener("keydown", event => {
      if (event.key !== "Escape" || !menu.open) return;
      menu.open = false;
      menu.firstElementChild.focus();
      event.stopPropagation();
    });
    addEventListener("click", event => { if (!event.target.closest("summary")) menu.open = false; });
  }

  // Do something only if one of these values is not as it was.
  when(name, values, act) {
    const old = this.seen[name];
    if (old && values.every((value, k) => value === old[k])) return;
    this.seen[name] = values;
    act();
  }

  render() {
    const {store, checked} = this.studio;
    const shown = JSON.stringify(store.takes.map(({id, name, starred, note}) => [id, name, starred, note]));
    this.when("takes", [shown, store.doc.take], () => this.writeTakes());
    this.when("job", [store.job, store.queue], () => this.writeJob());
    this.when("problems", [checked.found], () => this.writeProblems());
    this.when("export", [store.doc.take, store.exports], () => this.writeExports());
  }

  async ask(...request) {
    try {
      await call(...request);
      await this.studio.store.refresh();
    } catch (failure) {
      this.studio.fail(failure);
    }
  }

  cancel(job) {
    if (!RUNS.includes(job?.state)) return;
    if (job.state === "singing") this.studio.say("Stops after this step.");
    this.ask("POST", "/api/cancel", {job: job.id});
  }

  // The newest take first. A click on its name goes back to it.
  writeTakes() {
    const {store} = this.studio, list = byId("takes"), focused = document.activeElement?.dataset?.key;
    list.replaceChildren();
    if (!store.takes.length) make("p", list.appendChild(document.createElement("li")),
      "Nothing sung yet. Write some words, then press Sing.");
    for (const take of store.takes.slice().sort((a, b) => b.id - a.id)) {
      const row = make("li", list), current = take.id === store.doc.take;
      row.classList.toggle("current", current);
      const star = button(row, take.starred ? "\u2605" : "\u2606", `Star ${take.name}`,
        () => this.ask("POST", `/api/takes/${take.id}`, {starred: !take.starred}));
      star.setAttribute("aria-pressed", take.starred);
      const name = button(row, take.name, "", () => this.goTo(take));
      name.className = "name";
      if (current) name.setAttribute("aria-current", "true");
      name.title = current ? "This take is shown" : "Go back to this take and its words";
      const about = [stamp(take.duration), take.note].filter(Boolean).join(" \u00b7 ");
      make("span", row, about).className = "note";
      button(row, "Rename", `Rename ${take.name}`, () => this.rename(row, name, take));
      const gone = button(row, "\u00d7", `Delete ${take.name}`,
        () => this.ask("DELETE", `/api/takes/${take.id}`));
      gone.disabled = current;
      [...row.querySelectorAll("button")].forEach((one, k) => { one.dataset.key = `${take.id} ${k}`; });
    }
    if (focused) list.querySelector(`[data-key="${focused}"]`)?.focus();
  }

  goTo(take) {
    const {store} = this.studio;
    store.edit(doc => take.id === doc.take ? doc : take.kind === "recording" ? {...doc, take: take.id}
      : {...doc, take: take.id, lines: take.lines, style: take.style, seed: store.seedOf(take)});
  }

  rename(row, name, take) {
    const input = document.createElement("input");
    input.value = take.name;
    input.maxLength = 100;
    input.setAttribute("aria-label", `Name of ${take.name}`);
    name.replaceWith(input);
    input.select();
    const done = keep => {
      input.onblur = null;
      input.replaceWith(name);
      name.focus();
      const text = input.value.trim();
      if (keep && text && text !== take.name) this.ask("POST", `/api/takes/${take.id}`, {name: text});
    };
    input.onblur = () => done(true);
    input.onkeydown = event => {
      if (!["Enter", "Escape"].includes(event.key) || event.isComposing) return;
      event.preventDefault();                                    // else Enter would also press the name
      done(event.key === "Enter");
    };
  }

  writeJob() {
    const {store: {job, queue}} = this.studio, box = byId("job"), runs = RUNS.includes(job?.state);
    const focused = box.contains(document.activeElement);
    box.hidden = !runs;
    if (runs) {
      const steps = job.of ? ` ${job.done} of ${job.of}` : "";
      box.querySelector("span").textContent = `Singing: ${job.stage || "starting"}${steps}`;
      const bar = box.querySelector("progress");
      if (job.of) bar.value = job.done / job.of; else bar.removeAttribute("value");
      bar.setAttribute("aria-label", "Singing");
    } else if (focused) byId("sing").focus();
    const waiting = byId("queue");
    waiting.replaceChildren();
    queue.forEach((next, k) => {
      const row = make("li", waiting, `${k + 1} waiting`);
      button(row, "\u00d7", `Cancel waiting song ${k + 1}`, () => this.cancel(next));
    });
  }

  writeProblems() {
    const {studio} = this, {checked} = studio, list = byId("problems").querySelector("ul");
    byId("problems").hidden = !checked.problems.length;
    list.replaceChildren();
    for (const problem of checked.problems) {
      const row = make("li", list), place = checked.place(problem);
      const word = flat(studio.store.doc.lines)[place];
      row.className = problem.level;
      make("strong", row, problem.level);
      if (word) button(row, `${word.word}: ${problem.text}`, "", () => {
        studio.select(place);
        studio.view.reveal(word.start, word.end);
        studio.view.blocks.focus();
      });
      else make("span", row, `${problem.where}: ${problem.text}`);
    }
  }

  writeExports() {
    const {store: {exports, doc}} = this.studio, list = byId("export").querySelector("ul");
    list.replaceChildren();
    if (!doc.take) make("li", list, "Sing first: there is no take yet.");
    for (const kind of doc.take ? exports : []) {
      const link = make("a", make("li", list), NAMES[kind] ?? kind.toUpperCase());
      link.href = `/api/export/${kind}?take=${doc.take}`;
      link.download = "";
    }
  }

  writeHelp() {
    const box = byId("help").querySelector("div");
    for (const [group, rows] of KEYS) {
      const part = make("section", box);
      make("h3", part, group);
      const list = make("dl", part);
      for (const [keys, action, text] of rows) {
        const term = make("dt", list);
        for (const key of keys) make("kbd", term, shown(key));
        make("dd", list, text);
      }
    }
    make("p", box, "With Shift, steps of 10 ms are 50 ms. Ctrl is Command on a Mac. Drag a word or its "
      + "edges: its neighbours give way. Drag on the ruler for a range. Drop a song or lyrics anywhere.");
    for (const node of document.querySelectorAll("[data-do]")) {
      const name = node.getAttribute("aria-label") ?? node.textContent, key = keyOf(node.dataset.do);
      node.title = key ? `${name} (${key})` : name;
      if (key) node.setAttribute("aria-keyshortcuts", key.replace("Ctrl", "Control"));
    }
  }
}
