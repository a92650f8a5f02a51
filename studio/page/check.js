// What the server finds in the document: problems, and each word's sounds. Asked soon after every change.

import {call} from "./api.js";
import {flat} from "./words.js";

const CHECK_MS = 300;

export class Checked {
  // tell() is called when there is something new; failed(failure) when the server could not say.
  constructor(tell, failed) {
    Object.assign(this, {tell, failed, doc: null, timer: 0, words: [], at: new Map(),
      found: {problems: [], sounds: [], phonemes: []}});
  }

  // The document has changed, perhaps in what matters here.
  look(doc) {
    const parts = ["lines", "style", "duration"];
    if (this.doc && parts.every(part => doc[part] === this.doc[part])) return;
    this.doc = doc;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(doc), CHECK_MS);
  }

  async ask(doc) {
    try {
      const found = await call("POST", "/api/check", {document: doc});
      if (doc !== this.doc) return;
      Object.assign(this, {found, words: flat(doc.lines), at: new Map()});
      for (const problem of found.problems) {
        const place = this.place(problem);
        if (place !== null) this.at.set(place, [...this.at.get(place) ?? [], problem]);
      }
      this.tell();
    } catch (failure) {
      this.failed(failure);
    }
  }

  get problems() { return this.found.problems; }

  // The place of the word that a problem is about, or of the first word of its line, or null.
  place({where}) {
    const word = where.match(/\bword (\d+)/), line = where.match(/^line (\d+)/);
    if (word) return word[1] - 1;
    const first = line ? this.words.findIndex(other => other.line === line[1] - 1) : -1;
    return first < 0 ? null : first;
  }

  // What is wrong with word i, or "". Notes are no problems.
  problem(i) {
    return (this.at.get(i) ?? []).filter(({level}) => level !== "note").map(({text}) => text).join("; ");
  }

  known(i, word) {
    const old = this.words[i];
    return Boolean(old) && old.word === word.word && old.phoneme === word.phoneme;
  }

  // The sounds of word i as [text, from, to], in parts of its length; none if it was not looked at yet.
  sounds(i, word) {
    if (!this.known(i, word)) return [];
    const {start, end} = this.words[i], long = end - start || 1;
    const part = time => (time - start) / long;
    return (this.found.sounds[i] ?? []).map(([text, from, to]) => [text, part(from), part(to)]);
  }

  phoneme(i, word) {
    return this.known(i, word) ? this.found.phonemes[i] ?? "" : "";
  }
}
