// Tap the rhythm: a click goes at the song's tempo, Space (or the button) sets when each word is sung, from
// the selected one on. Held for as long as the word lasts. Over a recording, that is heard as well. One step
// of the history.

import {flat, retimed} from "./words.js";

const BEATS_BEFORE = 4, FIRST_BEAT_S = 0.5, AHEAD_S = 0.2, SHORTEST_S = 0.05;

export class Tap {
  constructor(studio, panel) {
    Object.assign(this, {studio, panel, on: false});
    const button = panel.querySelector("#beat"), space = event => this.on && event.key === " ";
    button.addEventListener("pointerdown", event => { event.preventDefault(); this.down(); });
    for (const kind of ["pointerup", "pointercancel"]) button.addEventListener(kind, () => this.up());
    // Before all other keys: while this is on, Space is nothing else.
    addEventListener("keydown", event => {
      if (!space(event)) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      if (!event.repeat) this.down();
    }, true);
    addEventListener("keyup", event => { if (space(event)) { event.preventDefault(); this.up(); } }, true);
  }

  async begin() {
    const {studio: {store, player, selected}} = this, words = flat(store.doc.lines);
    if (this.on || selected === null) return;
    player.audio.pause();
    const beat = 60 / store.doc.bpm, start = words[selected].start - BEATS_BEFORE * beat;
    this.context = new AudioContext();
    await this.context.resume();
    this.zero = this.context.currentTime + 0.1 - start;          // the context's time when the song's is 0
    this.over = store.take()?.kind === "recording";
    if (this.over) player.play(Math.max(0, start));
    Object.assign(this, {on: true, beat, first: selected, times: [], held: false,
      next: Math.ceil((start - FIRST_BEAT_S) / beat)});
    this.panel.hidden = false;
    this.tick();
  }

  get time() {
    if (this.over) return this.studio.player.time;
    return this.context.currentTime - (this.context.outputLatency || 0) - this.zero;
  }

  // Plan the clicks of the next moment, move the playhead.
  tick() {
    if (!this.on) return;
    const {context, studio} = this;
    const soon = () => FIRST_BEAT_S + this.next * this.beat + this.zero;
    for (; soon() < context.currentTime + AHEAD_S; this.next++)
      if (!this.over && soon() > context.currentTime) this.click(soon(), this.next % 4 === 0);
    if (!this.over) studio.player.seek(this.time);
    studio.view.follow(studio.player.time);
    const words = flat(studio.store.doc.lines), next = words[this.first + this.times.length];
    this.panel.querySelector("strong").textContent = next ? `Next: ${next.word}` : "That was the last word.";
    requestAnimationFrame(() => this.tick());
  }

  click(at, first) {
    const {context} = this, tone = context.createOscillator(), level = context.createGain();
    tone.frequency.value = first ? 1600 : 1100;
    level.gain.setValueAtTime(0.25, at);
    level.gain.exponentialRampToValueAtTime(0.001, at + 0.05);
    tone.connect(level).connect(context.destination);
    tone.start(at);
    tone.stop(at + 0.06);
  }

  down() {
    const words = flat(this.studio.store.doc.lines), {times, first} = this, now = this.time;
    const least = times.length ? times.at(-1)[0] + SHORTEST_S : words[first - 1]?.end ?? 0;
    if (!this.on || this.held || !words[first + times.length] || now < least - 0.2) return;
    const start = Math.max(now, least);
    if (times.length) times.at(-1)[1] = Math.min(times.at(-1)[1], start);
    times.push([start, start + SHORTEST_S]);
    this.held = true;
    this.show();
  }

  up() {
    if (!this.on || !this.held) return;
    const last = this.times.at(-1);
    last[1] = Math.max(this.time, last[0] + SHORTEST_S);
    this.held = false;
    this.show();
  }

  // The words at their tapped times, on the words as they were before.
  show() {
    const {store} = this.studio, key = `tap ${this.zero}`;
    this.before ??= store.doc;
    store.edit(() => retimed(this.before, this.first, this.times), key, true);
    this.studio.select(this.first + this.times.length - 1, {quiet: true});
  }

  end() {
    if (!this.on) return;
    this.up();
    Object.assign(this, {on: false, before: null});
    this.panel.hidden = true;
    this.studio.player.audio.pause();
    this.context.close();
    this.studio.view.blocks.focus();
  }
}
