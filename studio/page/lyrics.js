// The lyrics as text: what is typed or pasted becomes lines of the document; what changes elsewhere is shown
// here.

import {call} from "./api.js";
import {same} from "./store.js";
import {plain} from "./words.js";

const TYPED_MS = 400;
const words = text => text.split("\n").map(line => line.trim()).filter(Boolean).join("\n");

export class LyricsBox {
  constructor(studio, box) {
    Object.assign(this, {studio, box, timer: 0, sending: null, lines: null});
    box.addEventListener("input", event => {
      box.dataset.dirty = "true";
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.flush(), event.inputType === "insertFromPaste" ? 0 : TYPED_MS);
    });
    box.addEventListener("blur", async () => { if (await this.flush()) this.write(); });
  }

  // Send what was typed and not yet sent. Returns whether the document holds all of the text.
  flush() {
    clearTimeout(this.timer);
    this.sending ??= this.send().finally(() => { this.sending = null; });
    return this.sending;
  }

  async send() {
    const {studio: {store}, box} = this;
    while (box.dataset.dirty) {
      const text = box.value, {doc} = store;
      try {
        const {document: found} = await call("POST", "/api/lyrics", {document: doc, text});
        if (store.doc !== doc) continue;                         // changed meanwhile: once more
        if (box.value === text) delete box.dataset.dirty;
        store.edit(() => same(found, doc) ? doc : found, "lyrics");
        this.lines = store.doc.lines;
        this.studio.say("");
      } catch (failure) {
        this.studio.say(failure.message, "error");
        return false;
      }
    }
    return true;
  }

  // Show the document's words, unless the text already says the same.
  write() {
    const text = plain(this.studio.store.doc.lines), {box} = this, at = box.selectionStart;
    this.lines = this.studio.store.doc.lines;
    if (words(box.value) === words(text)) return;
    box.value = text;
    box.setSelectionRange(Math.min(at, text.length), Math.min(at, text.length));
  }

  render() {
    if (this.lines !== this.studio.store.doc.lines && !this.box.dataset.dirty) this.write();
  }
}
