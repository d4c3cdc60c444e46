"use strict";
/* Finds, filters and orders the features that are already in the page. It makes no markup. */
(() => {
  const list = document.getElementById("list");
  const tools = document.getElementById("tools");
  if (!list || !tools) return;
  const find = document.getElementById("find");
  const part = document.getElementById("part");
  const order = document.getElementById("order");
  const count = document.getElementById("count");
  const none = document.getElementById("none");
  const every = [...list.children].map((node) => ({
    node,
    part: node.dataset.part,
    index: +node.dataset.index,
    score: +node.dataset.score,
    often: +node.dataset.often,
    strong: +node.dataset.strong,
    words: node.textContent.toLowerCase(),
  }));
  const unscored = (f) => (f.score < 0 ? 2 : f.score);
  const orders = {
    part: (a, b) => a.index - b.index,
    best: (a, b) => b.score - a.score,
    worst: (a, b) => unscored(a) - unscored(b),
    rare: (a, b) => a.often - b.often,
    often: (a, b) => b.often - a.often,
    strong: (a, b) => b.strong - a.strong,
  };
  const show = () => {
    const asked = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const f of every) {
      const fits = (!part.value || f.part === part.value) && asked.every((w) => f.words.includes(w));
      f.node.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${every.length} features`;
    none.hidden = shown > 0;
  };
  const sort = () => {
    every.sort((a, b) => orders[order.value](a, b) || a.index - b.index);
    list.append(...every.map((f) => f.node));
  };
  find.addEventListener("input", show);
  part.addEventListener("change", show);
  order.addEventListener("change", sort);
  tools.hidden = false;
  sort();
  show();
})();
