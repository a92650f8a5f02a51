// The words that are in sight, as elements that can be focused and dragged. Read `render`, then `listen`.

import {stamp} from "./timeline.js";
import {edged, flat, moved} from "./words.js";

export const RULER_PX = 42, LANE_PX = 48;
const EDGE_PX = 8, STILL_PX = 3, SOUNDS_FROM_PX = 26;

export class Blocks {
  constructor(view, list) {
    Object.assign(this, {view, studio: view.studio, list, shown: new Map(), drag: null, drags: 0});
    this.listen();
  }

  // Show the words at these places, and the selected one, which has the focus wherever it is.
  render(places, now) {
    const {studio: {store, selected}, view, shown} = this, words = flat(store.doc.lines);
    if (selected !== null && !places.includes(selected)) places = [...places, selected];
    const wanted = new Set(places);
    for (const [i, block] of shown) if (!wanted.has(i)) {
      block.remove();
      shown.delete(i);
    }
    const tabbed = selected ?? places[0];                        // arrows lead to the others
    for (const i of places) {
      if (!shown.has(i)) shown.set(i, this.made(i));
      const block = shown.get(i), word = words[i], wide = (word.end - word.start) * view.scale;
      block.style.left = word.start * view.scale + "px";
      block.style.width = Math.max(2, wide - 1) + "px";
      block.style.top = RULER_PX + view.layout().lane[i] * LANE_PX + 3 + "px";
      block.tabIndex = i === tabbed ? 0 : -1;
      block.setAttribute("aria-selected", i === selected);
      block.classList.toggle("lit", word.start <= now && now < word.end);
      this.fill(block, i, word, wide >= SOUNDS_FROM_PX);
    }
  }

  made(i) {
    const block = document.createElement("div");
    block.className = "block";
    block.setAttribute("role", "option");
    block.append(document.createElement("span"), document.createElement("span"));
    block.lastChild.className = "sounds";
    block.place = i;
    // In document order, as they are read out.
    const next = [...this.shown.keys()].filter(other => other > i).sort((a, b) => a - b)[0];
    this.list.insertBefore(block, this.shown.get(next) ?? null);
    return block;
  }

  // A block's texts and marks, if they are not what it shows.
  fill(block, i, word, roomy) {
    const {store, changed, checked} = this.studio, entry = store.doc.lines[word.line];
    const sounds = roomy ? checked.sounds(i, word) : [], problem = checked.problem(i);
    const marks = {changed: changed.words.has(i), problem: Boolean(problem), backing: entry.backing,
      first: word.index === 0, own: entry.style !== null, typed: word.phoneme !== null};
    const about = [word.word, `${stamp(word.start, 2)} \u2013 ${stamp(word.end, 2)}`, entry.style,
      changed.words.has(i) && "not sung like this yet", problem].filter(Boolean).join(", ");
    const all = flat(store.doc.lines).length;
    const key = [about, all, ...Object.values(marks), ...sounds.flat()].join("|");
    if (block.key === key) return;
    block.key = key;
    for (const name in marks) block.classList.toggle(name, marks[name]);
    block.setAttribute("aria-label", about);
    block.setAttribute("aria-posinset", i + 1);
    block.setAttribute("aria-setsize", all);
    block.title = about;
    block.firstChild.textContent = word.word;
    block.lastChild.replaceChildren(...sounds.map(([text, from, to]) => {
      const sound = document.createElement("i");
      sound.textContent = text;
      sound.style.left = 100 * from + "%";
      sound.style.width = 100 * (to - from) + "%";
      return sound;
    }));
  }

  // Give the selected word the focus.
  focus() {
    this.view.render();
    this.shown.get(this.studio.selected)?.focus({preventScroll: true});
  }

  listen() {
    const {list, studio, view} = this;
    const block = event => event.target.closest(".block");
    list.addEventListener("focusin", event => studio.select(block(event).place, {quiet: true}));
    list.addEventListener("dblclick", () => studio.actions.rename());
    list.addEventListener("pointerdown", event => this.begin(event, block(event)));
    list.addEventListener("pointermove", event => {
      const {drag} = this;
      if (!drag) return;
      const by = event.clientX - drag.x + view.scroll.scrollLeft - drag.left;
      if (!drag.going && Math.abs(by) < STILL_PX) return;
      drag.going = true;
      const to = drag[drag.edge ?? "start"] + by / view.scale;
      studio.store.edit(() => drag.edge ? edged(drag.doc, drag.place, drag.edge, to)
        : moved(drag.doc, drag.place, to), drag.key, true);
    });
    list.addEventListener("pointerup", () => { this.drag = null; });
    list.addEventListener("pointercancel", () => this.cancel());
  }

  // Touch scrolls over words; only the selected one can be dragged.
  begin(event, block) {
    if (!block || event.button !== 0) return;
    const i = block.place, touch = event.pointerType === "touch", was = this.studio.selected === i;
    if (event.shiftKey) return this.studio.extendTo(i);
    this.studio.select(i, {quiet: true});
    block.focus({preventScroll: true});
    if (touch && !was) return;
    event.preventDefault();                                      // no selection of text
    block.setPointerCapture(event.pointerId);
    const box = block.getBoundingClientRect(), x = event.clientX;
    const reach = Math.min(touch ? 2 * EDGE_PX : EDGE_PX, box.width / 4);
    const edge = x < box.left + reach ? "start" : x > box.right - reach ? "end" : null;
    const {doc} = this.studio.store, {start, end} = flat(doc.lines)[i];
    this.drag = {doc, place: i, edge, x, left: this.view.scroll.scrollLeft, start, end, going: false,
      key: `drag ${++this.drags}`};
  }

  // Break off a drag; whether there was one.
  cancel() {
    const {drag} = this;
    this.drag = null;
    if (drag?.going) this.studio.store.revert(drag.key);
    return Boolean(drag);
  }
}
