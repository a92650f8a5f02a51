// Words of a document, as pure functions: documents are never changed, a changed copy is returned. All times
// are seconds from the song's start, in hundredths. Read `flat`, `replaced`, then `changes`.

const SHORTEST_S = 0.02;           // of a word
const LEAST_LEFT_S = 0.05;         // of a word whose neighbour is moved over it
export const round = s => Math.round(s * 100) / 100;
const clamp = (x, low, high) => Math.max(low, Math.min(x, high));

const flats = new WeakMap();
// All words in document order, each with its line and its place in it. The same lines give the same array.
export function flat(lines) {
  if (!flats.has(lines))
    flats.set(lines, lines.flatMap((entry, line) =>
      entry.words.map((word, index) => ({...word, line, index}))));
  return flats.get(lines);
}

// The document with word i replaced by some, or none; a line without words goes.
export function replaced(doc, i, ...words) {
  const {line, index} = flat(doc.lines)[i], entry = doc.lines[line];
  const row = {...entry, words: entry.words.toSpliced(index, 1, ...words)};
  return {...doc, lines: doc.lines.toSpliced(line, 1, ...(row.words.length ? [row] : []))};
}

const bare = ({word, start, end, phoneme}) => ({word, start, end, phoneme});
// The document with some values of word i changed: {word}, {phoneme}.
export const altered = (doc, i, values) => replaced(doc, i, {...bare(flat(doc.lines)[i]), ...values});

// The times between which word i may lie: its neighbours give way down to their shortest length (one voice
// sings one word at a time, and planned words have no room between them).
function limits(doc, i) {
  const words = flat(doc.lines), before = words[i - 1], next = words[i + 1];
  return [before ? Math.min(before.start + LEAST_LEFT_S, before.end) : 0,
    next ? Math.max(next.end - LEAST_LEFT_S, next.start) : Infinity];
}

// The document with word i at new times; a neighbour that it would overlap is cut there.
function placed(doc, i, start, end) {
  [start, end] = [round(start), round(end)];
  const words = flat(doc.lines);
  if (words[i - 1]?.end > start) doc = altered(doc, i - 1, {end: start});
  if (words[i + 1]?.start < end) doc = altered(doc, i + 1, {start: end});
  return altered(doc, i, {start, end});
}

// The document with word i moved to a start.
export function moved(doc, i, start) {
  const word = flat(doc.lines)[i], [low, high] = limits(doc, i), length = word.end - word.start;
  if (high - low < length) return doc;                           // its edges can mend that
  start = clamp(round(start), low, high - length);
  return placed(doc, i, start, start + length);
}

// The document with one edge ("start" or "end") of word i at a time.
export function edged(doc, i, edge, time) {
  const {start, end} = flat(doc.lines)[i], [low, high] = limits(doc, i);
  return edge === "start" ? placed(doc, i, clamp(time, Math.min(low, start), end - SHORTEST_S), end)
    : placed(doc, i, start, clamp(time, start + SHORTEST_S, Math.max(high, end)));
}

// The document with word i split in two at a time: its letters in the same ratio.
export function split(doc, i, time) {
  const word = bare(flat(doc.lines)[i]), letters = [...word.word];
  time = round(clamp(time, word.start + SHORTEST_S, word.end - SHORTEST_S));
  const part = (time - word.start) / (word.end - word.start);
  const cut = clamp(Math.round(part * letters.length), 1, Math.max(1, letters.length - 1));
  const [one, two] = [letters.slice(0, cut).join(""), letters.slice(cut).join("") || word.word];
  return replaced(doc, i, {...word, word: one, end: time, phoneme: null},
    {...word, word: two, start: time, phoneme: null});
}

// The document with word i and the next word of its line as one; null if it is the line's last.
export function joined(doc, i) {
  const [one, two] = flat(doc.lines).slice(i, i + 2);
  if (two?.line !== one.line) return null;
  const phoneme = one.phoneme && two.phoneme ? one.phoneme + two.phoneme : null;
  const both = {word: one.word + two.word, start: one.start, end: two.end, phoneme};
  return replaced(replaced(doc, i + 1), i, both);
}

// The document with the singer of the line of word i; null: the song's.
export function sungBy(doc, i, style) {
  const {line} = flat(doc.lines)[i];
  return {...doc, lines: doc.lines.map((entry, k) => k === line ? {...entry, style} : entry)};
}

// The document with the words from `first` on at new times [[start, end], ...]; the words after them move
// along, so that the rest keeps its rhythm.
export function retimed(doc, first, times) {
  const old = flat(doc.lines)[first + times.length - 1], by = times.at(-1)[1] - old.end;
  let i = 0;
  return {...doc, lines: doc.lines.map(entry => ({...entry, words: entry.words.map(word => {
    const place = i++ - first;
    if (place < 0) return word;
    const [start, end] = times[place] ?? [word.start + by, word.end + by];
    return {...word, start: round(start), end: round(end)};
  })}))};
}

const key = (word, entry, style) =>
  [word.start.toFixed(3), word.end.toFixed(3), word.word, word.phoneme ?? "", entry.style ?? style].join("|");
// What differs from the take that was sung: {words: a Set of places in document order, count: how many words
// would have to be sung again; a word that is gone counts, too}.
export function changes(doc, take) {
  const sung = new Map();
  const keys = ({lines, style}) => lines.flatMap(entry => entry.words.map(word => key(word, entry, style)));
  for (const k of keys(take)) sung.set(k, (sung.get(k) ?? 0) + 1);
  const words = new Set();
  keys(doc).forEach((k, i) => {
    if (sung.get(k)) sung.set(k, sung.get(k) - 1);
    else words.add(i);
  });
  const gone = [...sung.values()].reduce((sum, n) => sum + n, 0);
  return {words, count: Math.max(words.size, gone)};
}

// The lines as people write them: sections once, (backing) lines in brackets.
export function plain(lines) {
  const rows = [];
  let section = "";
  for (const entry of lines) {
    if (entry.section && entry.section !== section)
      rows.push(...rows.length ? [""] : [], `[${entry.section}]`);
    section = entry.section;
    const text = entry.words.map(word => word.word).join(" ");
    if (text) rows.push(entry.backing ? `(${text})` : text);
  }
  return rows.join("\n");
}
