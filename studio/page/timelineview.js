// The time line: ruler, words as blocks, wave and spectrogram. Only what is in sight has elements. Read
// `render`, then `Blocks` in blocks.js, which builds and drags the words.

import {cleared, colours, drawWave, lanes, patience, stamp} from "./timeline.js";
import {Blocks, LANE_PX, RULER_PX} from "./blocks.js";
import {call} from "./api.js";
import {flat, round} from "./words.js";

const LANES = 4, FIRST_PX_PER_S = 150, CLOSEST_PX_PER_S = 1200, EMPTY_S = 10, MOST_BLOCKS = 500;
const LEAST_WAVE_PX = 90, MOST_WAVE_PX = 170;
const BEATS_PER_BAR = 4, FIRST_BEAT_S = 0.5;                     // as the planner counts
const STEPS_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300], LABEL_PX = 70, TAIL_S = 0.5;

export class TimelineView {
  constructor(studio, scroll) {
    const [track, ruler] = [scroll.firstElementChild, document.createElement("div")];
    Object.assign(this, {studio, scroll, track, canvas: track.querySelector("canvas"), scale: 0, hover: null,
      sounds: new Map(), lined: null, spectrogram: true, frame: 0, follows: patience([scroll])});
    this.blocks = new Blocks(this, track.querySelector("#blocks"));
    ruler.id = "ruler";
    track.prepend(ruler);
    this.listen(ruler);
  }

  get wide() { return this.scroll.clientWidth; }
  get duration() {
    const {store} = this.studio, words = flat(store.doc.lines);
    const last = words.reduce((end, word) => Math.max(end, word.end), 0);
    const sung = Math.max(store.doc.duration ?? 0, store.take()?.duration ?? 0);
    return Math.max(sung, words.length ? last + TAIL_S : EMPTY_S);
  }
  time(x) { return (x + this.scroll.scrollLeft) / this.scale; }  // at a place, counted from the left edge

  // Draw soon, once however often it is asked for.
  invalidate() {
    this.frame ||= requestAnimationFrame(() => { this.frame = 0; this.render(); });
  }

  // Scale by a factor; what is at x from the left edge stays there. 0: the whole song.
  zoom(factor, x = this.wide / 2) {
    const at = this.time(x), whole = this.wide / this.duration;
    this.scale = factor ? Math.max(whole, Math.min(this.scale * factor, CLOSEST_PX_PER_S)) : whole;
    this.track.style.width = this.duration * this.scale + "px";
    this.scroll.scrollLeft = at * this.scale - x;
    this.invalidate();
  }

  // Bring a span of time into sight, if it is not.
  reveal(start, end) {
    const {scroll, scale, wide} = this, left = scroll.scrollLeft;
    if (start * scale < left + 20 || end * scale > left + wide - 20)
      scroll.scrollLeft = start * scale - Math.max(20, (wide - (end - start) * scale) * 0.3);
    this.invalidate();
  }

  // The words with their lanes, and in order of their starts; worked out once for the same lines.
  layout() {
    const {lines} = this.studio.store.doc;
    if (this.lined?.lines === lines) return this.lined;
    const words = flat(lines), order = words.map((_, i) => i).sort((a, b) => words[a].start - words[b].start);
    const lane = [];
    const spans = order.map(i => [words[i].start + 0.001, words[i].end]);
    lanes(spans, LANES).forEach((n, k) => { lane[order[k]] = n; });
    const longest = words.reduce((most, word) => Math.max(most, word.end - word.start), 0);
    const high = lane.reduce((most, n) => Math.max(most, n + 1), 1) * LANE_PX;
    return this.lined = {lines, words, order, lane, longest, high};
  }

  // The places of the words between two times.
  within(from, to) {
    const {words, order, longest} = this.layout();
    let low = 0, high = order.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (words[order[middle]].start < from - longest) low = middle + 1; else high = middle;
    }
    const found = [];
    for (; low < order.length && words[order[low]].start <= to; low++)
      if (words[order[low]].end >= from) found.push(order[low]);
    return found;
  }

  // What is known of a take's sound: peaks and picture, loaded when they are first asked for.
  sound(id) {
    if (id === null || id === undefined) return {peaks: [], rate: 100};
    if (!this.sounds.has(id)) {
      const sound = {peaks: [], rate: 100, picture: new Image()};
      this.sounds.set(id, sound);
      sound.picture.src = `/api/takes/${id}/spectrogram`;
      sound.picture.onload = () => this.invalidate();
      call("GET", `/api/takes/${id}/peaks`).then(found => { Object.assign(sound, found); this.invalidate(); },
        failure => this.studio.say(failure.message));
    }
    return this.sounds.get(id);
  }

  render() {
    const {studio: {player}, scroll, track, canvas, wide} = this;
    const whole = wide / this.duration;
    this.scale = Math.min(CLOSEST_PX_PER_S, Math.max(whole, this.scale || FIRST_PX_PER_S));
    track.style.width = this.duration * this.scale + "px";
    const tall = Math.round(Math.max(LEAST_WAVE_PX, Math.min(0.14 * innerHeight, MOST_WAVE_PX)));
    const top = RULER_PX + this.layout().high, high = top + tall * (this.spectrogram && player.take ? 2 : 1);
    track.style.height = high + "px";
    if (!player.paused && this.follows.over()) this.follow(player.time);
    const view = {left: scroll.scrollLeft, wide, scale: this.scale, top: top + 8, high: tall - 16, all: high,
      tall, head: player.time * this.scale - scroll.scrollLeft, under: top};
    const seen = this.within(view.left / view.scale, (view.left + wide) / view.scale);
    this.draw(cleared(canvas, wide, high), view, seen);
    this.blocks.render(seen.length > MOST_BLOCKS ? [] : seen, player.now);
  }

  follow(time) {
    const {scroll, scale, wide} = this, x = time * scale - scroll.scrollLeft;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (!calm) scroll.scrollLeft = time * scale - 0.4 * wide;
    else if (x < 0 || x > 0.95 * wide) scroll.scrollLeft = time * scale - 0.05 * wide;
  }

  draw(context, view, seen) {
    const {store, player, range, selected, changed} = this.studio, colour = colours();
    const {left, wide, scale, all, under, tall, head} = view, {words} = this.layout();
    const x = seconds => seconds * scale - left, heard = player.second ? player.before : player.take;
    const band = ([from, to], name, top, high) => {
      context.fillStyle = colour(name);
      context.fillRect(x(from), top, (to - from) * scale, high);
    };
    if (range) band(range, "--glow", 0, all);
    this.drawGrid(context, view, colour);
    const sound = this.sound(heard), take = store.take(heard);
    if (this.spectrogram && sound.picture?.naturalWidth && take) {
      const perSecond = sound.picture.naturalWidth / take.duration;
      const from = left / scale, to = Math.min((left + wide) / scale, take.duration);
      if (to > from) context.drawImage(sound.picture, from * perSecond, 0, (to - from) * perSecond,
        sound.picture.naturalHeight, 0, under + tall, (to - from) * scale, tall);
    }
    for (const i of seen) {
      const {start, end} = words[i];
      if (i === selected) band([start, end], "--glow", under, all - under);
      else if (seen.length > MOST_BLOCKS)
        band([start, end], changed.words.has(i) ? "--accent" : "--wave", RULER_PX + 8, LANE_PX - 16);
      context.fillStyle = colour("--line");
      const edges = scale * (end - start) > 6 ? [start, end] : [];
      for (const time of edges) context.fillRect(x(time), under, 1, tall);
    }
    drawWave(context, sound, view, colour);
    for (const span of take?.spans ?? []) band(span, "--accent", under + tall - 3, 3);
    context.fillStyle = "#fff";
    context.fillRect(head - 1, under + tall, 2, tall);           // the spectrogram is dark in either theme
    context.fillStyle = colour("--text");
    context.fillRect(head - 1, 0, 2, under + tall);
    context.beginPath();
    context.moveTo(head - 6, 0);
    context.lineTo(head + 6, 0);
    context.lineTo(head, 8);
    context.fill();
    if (this.hover !== null) {
      context.globalAlpha = 0.5;
      context.fillRect(this.hover, RULER_PX, 1, all);
      context.globalAlpha = 1;
      const onLeft = this.hover > wide / 2;
      context.textAlign = onLeft ? "right" : "left";
      context.fillText(stamp(this.time(this.hover), 2), this.hover + (onLeft ? -5 : 5), under + 14);
    }
  }

  // Seconds and sections on top, beats and bars behind the words.
  drawGrid(context, {left, wide, scale, under}, colour) {
    const {doc} = this.studio.store, beat = 60 / doc.bpm, from = left / scale, to = (left + wide) / scale;
    context.fillStyle = colour("--line");
    const every = beat * scale > 12 ? 1 : beat * scale > 3 ? BEATS_PER_BAR : 0;
    const first = every && Math.max(0, Math.floor((from - FIRST_BEAT_S) / beat / every)) * every;
    for (let k = first; every && FIRST_BEAT_S + k * beat < to; k += every) {
      const inside = k % BEATS_PER_BAR > 0, high = inside ? RULER_PX : 22;
      context.globalAlpha = inside ? 0.45 : 1;
      context.fillRect((FIRST_BEAT_S + k * beat) * scale - left, high, 1, under - high);
    }
    context.globalAlpha = 1;
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "left";
    const step = STEPS_S.find(s => s * scale >= LABEL_PX) ?? 600;
    for (let k = Math.floor(from / step); k * step < to; k++) {
      const at = k * step * scale - left;
      context.fillStyle = colour("--line");
      context.fillRect(at, 0, 1, 20);
      context.fillStyle = colour("--dim");
      context.fillText(stamp(k * step + 1e-6, step < 1 ? 1 : 0), at + 4, 14);
    }
    context.font = "600 10px system-ui, sans-serif";
    let before = "", free = -Infinity;
    for (const {section, words} of doc.lines) {
      const at = words.length ? words[0].start * scale - left : -Infinity;
      if (section && section !== before && at > free && at < wide) {
        context.fillText(section.toUpperCase(), at, 35);
        free = at + context.measureText(section.toUpperCase()).width + 8;
      }
      before = section;
    }
  }

  listen(ruler) {
    const {scroll, canvas, studio} = this;
    const place = event => event.clientX - scroll.getBoundingClientRect().left - scroll.clientLeft;
    scroll.addEventListener("scroll", () => this.invalidate());
    scroll.addEventListener("wheel", event => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 300), place(event));
    }, {passive: false});
    canvas.onclick = event => studio.player.seek(this.time(place(event)));
    for (const element of [canvas, ruler]) {
      element.addEventListener("pointermove", event => { this.hover = place(event); this.invalidate(); });
      element.addEventListener("pointerleave", () => { this.hover = null; this.invalidate(); });
    }
    // On the ruler, a click goes there, a drag selects a range.
    let from = null;
    ruler.onpointerdown = event => {
      ruler.setPointerCapture(event.pointerId);
      from = {x: place(event), time: round(this.time(place(event)))};
    };
    ruler.onpointermove = event => {
      if (!from || Math.abs(place(event) - from.x) < 4) return;
      const to = round(Math.max(0, Math.min(this.time(place(event)), this.duration)));
      studio.setRange([Math.min(from.time, to), Math.max(from.time, to)]);
    };
    ruler.onpointerup = event => {
      if (Math.abs(place(event) - from.x) < 4) {
        studio.setRange(null);
        studio.player.seek(from.time);
      }
      from = null;
    };
    ruler.onpointercancel = () => { from = null; };
    new ResizeObserver(() => this.invalidate()).observe(scroll);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.invalidate());
  }
}
