// The song as this tab knows it: the document with its history, and what the server has told. Read `edit`,
// then `save` and `meet` (another tab's changes). It tells of every change by an event "change", of news by
// "news".

import {call} from "./api.js";

const SAVE_MS = 400, MERGE_MS = 1000, STEPS = 200, KEPT_CHARACTERS = 1_000_000;
const kept = "studio history";

// One text for equal documents, whatever the order in which a server writes their fields.
const sorted = value => value && typeof value === "object" && !Array.isArray(value)
  ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => a < b ? -1 : 1)) : value;
const canonical = value => JSON.stringify(value, (_, inner) => sorted(inner));
export const same = (one, two) => one === two || canonical(one) === canonical(two);

// The last steps, as many as the browser keeps over a reload.
function recent(steps) {
  let count = 0, room = KEPT_CHARACTERS;
  while (count < steps.length && (room -= JSON.stringify(steps.at(-1 - count)).length) > 0) count++;
  return steps.slice(steps.length - count);
}

export class Store extends EventTarget {
  // state: the answer of /api/state.
  constructor(state) {
    super();
    Object.assign(this, {doc: state.document, base: state.document, undos: [], redos: [],
      last: {key: "", at: 0}, saving: null, failed: false, timer: 0});
    this.hear(state);
    this.revision = state.revision;
    this.restore();
    addEventListener("pagehide", () => this.keep());
  }

  hear({takes, job, queue, styles, exports}) {
    Object.assign(this, {takes, job, queue: queue ?? [], styles, exports});
  }

  take(id = this.doc.take) {
    return this.takes.find(take => take.id === id);
  }

  // The seed of the song that a take is, or that it has become of by edits.
  seedOf(take) {
    const before = this.take(take.before);
    return before ? this.seedOf(before) : take.seed;
  }

  tell() {
    this.dispatchEvent(new Event("change"));
  }

  news(text, kind = "") {
    this.dispatchEvent(new CustomEvent("news", {detail: [text, kind]}));
  }

  // One step: change(document) gives the new one. Steps with the same key that come soon after each other
  // (or, if the key belongs to one gesture, at any time) are one.
  edit(change, key = "", gesture = false) {
    const doc = change(this.doc), now = performance.now();
    if (!doc || doc === this.doc) return;
    const goesOn = key && key === this.last.key && (gesture || now - this.last.at < MERGE_MS);
    if (!goesOn) this.undos = [...this.undos, this.doc].slice(-STEPS);
    this.redos = [];
    this.last = {key, at: now};
    this.show(doc);
  }

  // Take back a gesture that was broken off.
  revert(key) {
    if (this.last.key === key) this.undo();
    this.redos = [];
  }

  undo() {
    if (!this.undos.length) return;
    this.redos.push(this.doc);
    this.last = {key: "", at: 0};
    this.show(this.known(this.undos.pop()));
  }

  redo() {
    if (!this.redos.length) return;
    this.undos.push(this.doc);
    this.last = {key: "", at: 0};
    this.show(this.known(this.redos.pop()));
  }

  // A document of the history may show a take that was deleted since.
  known(doc) {
    return doc.take === null || this.take(doc.take) ? doc : {...doc, take: this.doc.take};
  }

  show(doc) {
    this.doc = doc;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.autosave(), SAVE_MS);
    this.tell();
  }

  async autosave() {
    try {
      await this.save();
      if (this.failed) this.news("");
      this.failed = false;
    } catch (failure) {
      this.failed = true;
      this.news(failure.message, "error");
    }
  }

  // Bring the document to the server; one request at a time. Throws: Failure.
  save() {
    clearTimeout(this.timer);
    this.saving ??= this.send().finally(() => { this.saving = null; });
    return this.saving;
  }

  async send() {
    while (this.base !== this.doc) {
      const sent = this.doc;
      try {
        const body = {revision: this.revision, document: sent};
        this.revision = (await call("PUT", "/api/document", body)).revision;
        this.base = sent;
      } catch (failure) {
        if (failure.status !== 409) throw failure;
        this.meet(failure.body.document, failure.body.revision);
      }
    }
  }

  // The server's document is not the one that this tab started from. A new take alone is no conflict: edits
  // go on. Else its document is shown, and undo brings back this tab's.
  meet(theirs, revision) {
    const {doc: mine, base} = this;
    Object.assign(this, {base: theirs, revision});
    if (same(theirs, mine)) this.doc = theirs;
    else {
      const takeOnly = same({...theirs, take: null}, {...base, take: null});
      if (takeOnly || this.last.key !== "others") this.undos = [...this.undos, mine].slice(-STEPS);
      this.last = {key: takeOnly ? "sung" : "others", at: performance.now()};
      this.doc = takeOnly && mine !== base ? {...mine, take: theirs.take} : theirs;
      if (!takeOnly) this.news(mine === base ? "Changed in another tab."
        : "Another tab changed the song at the same time. This is its version; Undo brings back yours.");
    }
    this.tell();
  }

  // Ask the server how things are. Throws: Failure.
  async refresh() {
    let state, before;
    do {
      await this.saving?.catch(() => {});                        // whoever saves tells of its failure
      before = this.revision;
      state = await call("GET", "/api/state");
    } while (this.saving || this.revision !== before);
    this.hear(state);
    if (state.revision !== before) this.meet(state.document, state.revision);
    this.tell();
    if (this.base !== this.doc) await this.save();
  }

  // Keep the history over a reload, as far as it fits, and what is not yet saved.
  keep() {
    const {doc, base, revision} = this;
    const history = {doc, revision, undos: recent(this.undos), redos: recent(this.redos)};
    sessionStorage.setItem(kept, JSON.stringify(history));
    const nobody = () => {};                                     // is left to be told of a failure
    if (doc !== base)
      call("PUT", "/api/document", {revision, document: doc}, {keepalive: true}).catch(nobody);
  }

  restore() {
    const old = JSON.parse(sessionStorage.getItem(kept) ?? "null");
    if (!old || (old.revision !== this.revision && !same(old.doc, this.doc))) return;
    Object.assign(this, {undos: old.undos, redos: old.redos});
    if (!same(old.doc, this.doc)) this.show(old.doc);            // it was not saved before the reload
  }
}
