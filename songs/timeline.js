// What the time line of a finished song's page (songs/page.html, which holds a copy of this file) and that of
// the studio (studio/page, which imports it) share: time stamps, the drawing of the wave, lanes for words
// that overlap, and when to follow the sound again. No state of its own. Start with drawWave.

const BAR_PX = 3, PATIENCE_MS = 4000;

// A new element in a parent, with a text.
export const make = (tag, parent, text = "") => {
  const node = parent.appendChild(document.createElement(tag));
  node.textContent = text;
  return node;
};

// Seconds as 1:02 or, with digits, 1:02.50; rounded down, so that a clock never runs ahead.
export const stamp = (s, digits = 0) => {
  const whole = Math.floor(s * 10 ** digits + 1e-6) / 10 ** digits;
  return Math.floor(whole / 60) + ":" + (whole % 60).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
};

// A function that gives the page's colours by the names of their CSS variables.
export const colours = () => {
  const css = getComputedStyle(document.documentElement);
  return name => css.getPropertyValue(name);
};

// Give a canvas its size in CSS pixels, sharp on any screen; its context, cleared.
export function cleared(canvas, wide, high) {
  const dots = devicePixelRatio, context = canvas.getContext("2d");
  if (canvas.width !== Math.round(wide * dots) || canvas.height !== Math.round(high * dots)) {
    canvas.width = Math.round(wide * dots);
    canvas.height = Math.round(high * dots);
    canvas.style.width = wide + "px";
    canvas.style.height = high + "px";
  }
  context.setTransform(dots, 0, 0, dots, 0, 0);
  context.clearRect(0, 0, wide, high);
  return context;
}

// Draw the part of a wave that a canvas shows, as bars; those left of the playhead in the colour of what was
// played. sound: {peaks: percents of full scale, rate: peaks a second}; view: {left, wide: what is seen of
// the whole, in pixels, scale: pixels a second, top, high: where it stands, head: the playhead, seen from the
// left edge}.
export function drawWave(context, sound, view, colour) {
  const perBar = BAR_PX / view.scale * sound.rate;
  for (let bar = Math.floor(view.left / BAR_PX); bar * BAR_PX < view.left + view.wide; bar++) {
    const first = Math.floor(bar * perBar), end = Math.max(first + 1, Math.floor((bar + 1) * perBar));
    if (first >= sound.peaks.length) break;
    let peak = 0;
    for (let i = first; i < end && i < sound.peaks.length; i++) peak = Math.max(peak, sound.peaks[i]);
    const high = Math.max(1, peak / 100 * view.high), x = bar * BAR_PX - view.left;
    context.fillStyle = colour(x < view.head ? "--accent" : "--wave");
    context.fillRect(x, view.top + (view.high - high) / 2, BAR_PX - 1, high);
  }
}

// A lane for each span [start, end], sorted by start: the first in which it stands on no other; if all are
// taken, the one that ends first.
export function lanes(spans, most) {
  const ends = [];
  return spans.map(([start, end]) => {
    let lane = ends.findIndex(taken => taken <= start);
    if (lane < 0) lane = ends.length < most ? ends.length : ends.indexOf(Math.min(...ends));
    ends[lane] = end;
    return lane;
  });
}

// Whether panels may follow the sound: not while, or soon after, someone scrolls them by hand.
export function patience(panels) {
  let byHand = -Infinity;
  for (const panel of panels)
    for (const kind of ["wheel", "touchmove", "pointerdown"])
      panel.addEventListener(kind, () => { byHand = performance.now(); }, {passive: true});
  return {over: () => performance.now() - byHand > PATIENCE_MS, reset: () => { byHand = -Infinity; }};
}
