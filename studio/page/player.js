// Plays the current take, and the one before at the same place for comparison. Without a take it only keeps
// the playhead. It tells of every change of time by an event "time", of playing and pausing, too.

const EARLY_S = 0.005;             // a player may land a little before the time that it was asked for

export class Player extends EventTarget {
  // Two audio elements: one is heard, the other is ready.
  constructor(audio, other) {
    super();
    Object.assign(this, {audio, other, take: null, before: null, place: 0, span: null, loop: false});
    for (const element of [audio, other]) {
      element.preservesPitch = true;
      for (const kind of ["play", "pause", "seeked", "timeupdate", "ended", "loadedmetadata"])
        element.addEventListener(kind, () => element === this.audio && this.tick());
      element.addEventListener("ended", () => this.loop && element === this.audio && this.play(0));
    }
  }

  get second() { return this.audio.id === "other"; }             // whether the take before is heard
  get paused() { return this.audio.paused; }
  get time() { return this.take ? this.audio.currentTime : this.place; }
  get now() { return this.time + EARLY_S; }                      // for what is lit

  // Show takes by their ids, or null. The place stays, and what plays goes on.
  load(take, before) {
    if (take === this.take && before === this.before) return;
    const {time, paused} = this;
    if (this.second) this.swap();
    for (const [element, id, old] of [[this.audio, take, this.take], [this.other, before, this.before]]) {
      if (id === old) continue;
      if (id === null) element.removeAttribute("src");
      else element.src = `/api/takes/${id}/audio`;
      element.load();
    }
    Object.assign(this, {take, before});
    this.seek(time);
    if (!paused && take) this.start();
    else this.tick();
  }

  swap() {
    [this.audio, this.other] = [this.other, this.audio];
  }

  // Hear the other one of the two takes, at the same place.
  compare() {
    if (this.before === null || this.take === null) return;
    const {time, paused, audio} = this;
    this.swap();
    this.seek(time);
    if (!paused) this.start();
    audio.pause();
    this.tick();
  }

  seek(seconds) {
    this.place = Math.max(0, seconds);
    if (this.take) this.audio.currentTime = this.place;          // before it is loaded: where it will start
    this.tick();
  }

  start() {
    // A browser may refuse sound before the first click or key; the play button then still says Play.
    this.audio.play().catch(error => {
      if (!["NotAllowedError", "AbortError"].includes(error.name)) throw error;
    });
  }

  toggle() {
    if (!this.take) return;
    if (!this.paused) this.audio.pause();
    else this.start();
  }

  // Play from a time on; with a span [a, b] only up to b, or, while `loop` is on, again and again.
  play(from, span = null) {
    if (!this.take) return;
    this.seek(from);
    this.span = span;
    this.start();
  }

  set rate(rate) {
    for (const element of [this.audio, this.other])
      element.defaultPlaybackRate = element.playbackRate = rate;
  }

  // Look at the clock: once a frame while it plays.
  tick() {
    if (this.span && this.time >= this.span[1] && !this.paused) {
      if (this.loop) this.audio.currentTime = this.span[0];
      else {
        this.audio.pause();
        this.span = null;
      }
    }
    this.dispatchEvent(new Event("time"));
  }
}
