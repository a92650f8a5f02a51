// The keys: which do what, and how the help names them. An action's name is a function of actions.js; the
// buttons of index.html name the same ones (data-do).

// [group, [[keys, action, text], ...]]; Ctrl stands for Command, too.
export const KEYS = [
  ["Listen", [
    [["Space"], "toggle", "Play or pause"],
    [["Shift+Space"], "playSelection", "Play the selected word or range"],
    [["L"], "loop", "Repeat the range, or the song"],
    [["C"], "compare", "Switch to the take before and back"],
    [["1"], "slow50", "Half speed"], [["2"], "slow75", "Three quarters"], [["3"], "slow100", "Full speed"],
    [["PageUp"], "back", "Two seconds back"], [["PageDown"], "ahead", "Two seconds ahead"],
  ]],
  ["Sing", [
    [["Ctrl+Enter"], "sing", "Sing what changed, or all of it"],
    [["A"], "again", "Another take of the selection, or of the song"],
    [["X"], "cancel", "Stop singing"],
  ]],
  ["Select", [
    [["ArrowLeft"], "previousWord", "The word before"], [["ArrowRight"], "nextWord", "The next word"],
    [["ArrowUp"], "previousLine", "The line before"], [["ArrowDown"], "nextLine", "The next line"],
    [["Home"], "firstWord", "The first word"], [["End"], "lastWord", "The last word"],
    [["Shift+ArrowLeft"], "lessRange", "Range: one word less"],
    [["Shift+ArrowRight"], "moreRange", "Range: one word more"],
    [["R"], "lineRange", "Range: the line"],
    [["Escape"], "escape", "Drop the range, then the word; end tapping"],
  ]],
  ["Change the word", [
    [["Ctrl+ArrowLeft"], "earlier10", "10 ms earlier"], [["Ctrl+ArrowRight"], "later10", "10 ms later"],
    [["Alt+ArrowLeft"], "startEarlier10", "Start 10 ms earlier"],
    [["Alt+ArrowRight"], "startLater10", "Start 10 ms later"],
    [["Alt+ArrowUp"], "longer10", "End 10 ms later"], [["Alt+ArrowDown"], "shorter10", "End 10 ms earlier"],
    [["Enter", "F2"], "rename", "Write another word"], [["P"], "pronounce", "Type its pronunciation"],
    [["S"], "split", "Split at the playhead, or in the middle"], [["J"], "join", "Join with the next word"],
    [["Delete", "Backspace"], "remove", "Delete"], [["T"], "tap", "Tap the rhythm from this word on"],
    [["Ctrl+Z"], "undo", "Undo"], [["Ctrl+Shift+Z", "Ctrl+Y"], "redo", "Redo"],
  ]],
  ["View", [
    [["+", "="], "zoomIn", "Closer (also Ctrl and the wheel)"], [["-"], "zoomOut", "Farther"],
    [["0"], "fit", "The whole song"], [["G"], "spectrogram", "Spectrogram"],
    [["?"], "help", "These keys"],
  ]],
];

const ACTIONS = new Map(KEYS.flatMap(([, rows]) => rows).flatMap(
  ([keys, action]) => keys.map(key => [key, action])));
// With Shift, the steps of 10 ms are 50 ms.
for (const [key, action] of [...ACTIONS])
  if (action.endsWith("10")) ACTIONS.set(key.replace("Arrow", "Shift+Arrow"), action.replace("10", "50"));

// The name of a pressed key with its modifiers, as in KEYS.
function pressed(event) {
  const {key} = event, name = key === " " ? "Space" : key.length === 1 ? key.toUpperCase() : key;
  const sign = key.length === 1 && /[^A-Z ]/i.test(key);         // ? and + need Shift on many keyboards
  const held = {Ctrl: event.ctrlKey || event.metaKey, Alt: event.altKey, Shift: event.shiftKey && !sign};
  return [...Object.keys(held).filter(one => held[one]), name].join("+");
}

// How a key is shown.
const SIGNS = {ArrowLeft: "\u2190", ArrowRight: "\u2192", ArrowUp: "\u2191", ArrowDown: "\u2193",
  PageUp: "Page \u2191", PageDown: "Page \u2193"};
export const shown = key => key.replace(/\w+$/, name => SIGNS[name] ?? name);
// The key of an action, for a button's title; "" for none.
export const keyOf = action => shown([...ACTIONS].find(([, name]) => name === action)?.[0] ?? "");

const FIELD = "textarea, select, input:not([type=range], [type=checkbox], [type=file])";
const IN_FIELDS = new Set(["sing", "undo", "redo"]);

// Do what keys ask for. In a field, letters are text, arrows move in it, and what is typed there has its own
// undo.
export function listenToKeys(actions) {
  addEventListener("keydown", event => {
    const action = ACTIONS.get(pressed(event)), field = event.target.closest?.(FIELD);
    if (!action || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    if (field && (!IN_FIELDS.has(action) || field.dataset.dirty && action !== "sing")) return;
    const inside = event.target.closest?.("button, a, summary, [type=range], [type=checkbox]");
    const moves = event.target.type === "range" && event.key.startsWith("Arrow");
    if (inside && (action === "rename" || moves)) return;
    event.preventDefault();
    if (!event.repeat || !["toggle", "sing", "again", "tap"].includes(action)) actions[action]();
  });
  // On a button, Space would click it when it is let go.
  addEventListener("keyup", event => {
    if (event.key === " " && !event.target.closest?.(FIELD)) event.preventDefault();
  });
}
