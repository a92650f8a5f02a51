// The fields: the song's title, artist, singer, tempo and seed, and the selected word's text, sounds, times,
// singer. A field changes the document when it is left, or on Enter.

import {make, stamp} from "./timeline.js";
import {altered, edged, flat, sungBy} from "./words.js";

const NUMBERS = {bpm: [20, 400], seed: [0, 2 ** 32 - 1]};

// A field that is `dirty` while it holds what the document does not; commit(text) says whether it is
// accepted.
function field(input, commit) {
  const done = () => {
    if (!input.dataset.dirty) return;
    delete input.dataset.dirty;
    commit(input.value.trim());
    input.shows?.();
  };
  input.addEventListener("input", () => {
    if (input.tagName === "SELECT") commit(input.value);
    else input.dataset.dirty = "true";
  });
  input.addEventListener("change", done);
  input.addEventListener("keydown", event => {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) done();
    if (event.key !== "Escape" || !input.dataset.dirty) return;
    delete input.dataset.dirty;
    input.shows();
  });
}

// Show a value in a field that nobody is typing in.
function show(input, value) {
  input.shows = () => { input.value = value; };
  if (!input.dataset.dirty && input.value !== String(value)) input.value = value;
}

function options(select, names, first = []) {
  const all = [...first, ...names.map(name => [name, name])];
  if (select.options.length === all.length) return;
  select.replaceChildren();
  for (const [value, text] of all) make("option", select, text).value = value;
}

export class Inspector {
  constructor(studio, bar, form) {
    Object.assign(this, {studio, bar, form, shown: null});
    const {store} = studio;
    for (const input of bar) field(input, text => {
      const range = NUMBERS[input.id], number = Number(text);
      if (!range) store.edit(doc => doc[input.id] === text ? doc : {...doc, [input.id]: text});
      else if (text && number >= range[0] && number <= range[1])
        store.edit(doc => ({...doc, [input.id]: input.id === "seed" ? Math.round(number) : number}));
      else studio.say(`${input.id}: expected a number from ${range.join(" to ")}`, "error");
    });
    const {word, phoneme, start, end, style} = form.elements, edit = change => {
      if (studio.selected !== null) store.edit(doc => change(doc, studio.selected));
    };
    field(word, text => text && edit((doc, i) => altered(doc, i, {word: text.replace(/\s+/g, "")})));
    field(phoneme, text => edit((doc, i) => altered(doc, i, {phoneme: text || null})));
    for (const [input, edge] of [[start, "start"], [end, "end"]])
      field(input, text => text && isFinite(text) && edit((doc, i) => edged(doc, i, edge, Number(text))));
    field(style, text => edit((doc, i) => sungBy(doc, i, text || null)));
    form.addEventListener("submit", event => event.preventDefault());
    for (const input of [word, phoneme]) input.addEventListener("keydown", event => {
      if (["Enter", "Escape"].includes(event.key)) studio.view.blocks.focus();
    });
  }

  render() {
    const {studio: {store: {doc, styles}, selected, checked}, bar, form} = this;
    const {word, phoneme, start, end, style} = form.elements;
    options(bar.find(input => input.id === "style"), styles);
    options(style, styles, [["", "the song\u2019s"]]);
    for (const input of bar) show(input, doc[input.id]);
    if (this.shown !== selected)                                 // what was typed for another word goes
      for (const input of form.elements) delete input.dataset.dirty;
    this.shown = selected;
    const chosen = selected === null ? null : flat(doc.lines)[selected];
    for (const control of form.elements) control.disabled = !chosen;
    show(word, chosen?.word ?? "");
    show(phoneme, chosen?.phoneme ?? "");
    phoneme.placeholder = chosen ? checked.phoneme(selected, chosen) : "";
    show(start, chosen ? chosen.start.toFixed(2) : "");
    show(end, chosen ? chosen.end.toFixed(2) : "");
    show(style, chosen ? doc.lines[chosen.line].style ?? "" : "");
  }
}

// What the next take is about, for the button's neighbour: the range, the word, or the song.
export function aboutSelection({store, range, selected}) {
  const {doc} = store;
  if ((store.take()?.kind ?? "recording") === "recording") return "of the whole song";
  if (range) return `of ${stamp(range[0], 2)} \u2013 ${stamp(range[1], 2)}`;
  if (selected !== null) return `of \u201c${flat(doc.lines)[selected].word}\u201d`;
  return "of the whole song";
}
