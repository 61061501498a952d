// Keys and clicks of the page on which people rank answers. The server knows what they mean.
(() => {
  const NAMES = { Enter: "save", Backspace: "undo", Escape: "escape", s: "skip", b: "back", n: "nonsense", x: "nonsense", "?": "help" };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.target.closest("input, textarea, select")) return;
    if ((event.key === "Enter" || event.key === " ") && event.target.closest("button, a")) return;
    // By place and not by character: Shift+1 is another one on every keyboard, and so is 1 itself on some.
    const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
    const name = digit ? (event.shiftKey ? "tie" : "next") : NAMES[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!name) return;
    event.preventDefault();
    emitEvent("told", { name, card: digit ? Number(digit[1]) - 1 : null });
  });

  // A click anywhere on an answer ranks it, unless it is on a button, or marks some of the text.
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    // A button that was clicked on would take the next Enter, which is to save.
    if (button && event.detail > 0) button.blur();
    const answer = event.target.closest(".answer");
    if (!answer || button || String(getSelection())) return;
    emitEvent("told", { name: event.shiftKey ? "tie" : "next", card: Number(answer.dataset.card) });
  });

  // Shift and a click would mark text.
  document.addEventListener("mousedown", (event) => {
    if (event.shiftKey && event.target.closest(".answer")) event.preventDefault();
  });

  // What is half done stays in this browser. One that keeps nothing for pages can be worked with all the same.
  const PREFIX = "tunemill/";
  window.drafts = {
    read() {
      try {
        const names = Object.keys(localStorage).filter((name) => name.startsWith(PREFIX));
        return Object.fromEntries(names.map((name) => [name.slice(PREFIX.length), localStorage.getItem(name)]));
      } catch {
        return {};
      }
    },
    keep(name, text) {
      try {
        if (text) localStorage.setItem(PREFIX + name, text);
        else localStorage.removeItem(PREFIX + name);
      } catch {}
    },
  };
})();
