"use strict";
// The page's language and title follow the switch, which works without this as far as people see.
(() => {
  const [chinese, title] = [document.getElementById("show-zh"), document.querySelector("title")];
  const english = title.textContent;
  const follow = () => {
    document.documentElement.lang = chinese.checked ? "zh-CN" : "en";
    document.title = chinese.checked ? title.dataset.zh : english;
  };
  for (const radio of document.querySelectorAll("input[name=language]"))
    radio.addEventListener("change", follow);
  follow();  // a browser keeps the switch over a reload
})();
// The list of all samples: sorted, filtered and shown fifty at a time. Text enters as text only.
(() => {
  const PER_PAGE = 50;
  const KEY = 0, KIND = 1, QUESTION = 2, OURS = 3, THEIRS = 4, KL = 5, FLIP = 6, SAME = 7;
  const box = document.getElementById("explorer");
  if (!box) return;
  const body = box.querySelector("tbody");
  const search = box.querySelector("input[type=search]");
  const checks = [...box.querySelectorAll("input[type=checkbox]")];
  const state = { rows: null, found: [], sort: KL, down: true, page: 0, timer: 0 };

  const add = (parent, tag, text, name) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    parent.append(made);
    return made;
  };

  const pick = () => {
    const on = checks.filter((check) => check.checked).map((check) => check.value);
    const kinds = on.filter((value) => value !== "flip" && value !== "other");
    const words = search.value.trim().toLowerCase();
    state.found = state.rows.filter((row) =>
      (!kinds.length || kinds.includes(row[KIND])) &&
      (!on.includes("flip") || row[FLIP]) &&
      (!on.includes("other") || !row[SAME]) &&
      (!words || [KEY, QUESTION, OURS, THEIRS].some((i) => row[i].toLowerCase().includes(words))));
    const by = state.sort;
    state.found.sort((a, b) => (a[by] < b[by] ? -1 : a[by] > b[by] ? 1 : 0));
    if (state.down) state.found.reverse();
    state.page = 0;
    show();
  };

  const labels = {};
  for (const label of box.querySelectorAll(".filters label"))
    labels[label.querySelector("input").value] = label;

  const kindCell = (cell, kind) => {
    for (const part of labels[kind].querySelectorAll("span")) cell.append(part.cloneNode(true));
  };

  const show = () => {
    const pages = Math.max(1, Math.ceil(state.found.length / PER_PAGE));
    state.page = Math.min(Math.max(state.page, 0), pages - 1);
    const start = state.page * PER_PAGE;
    body.replaceChildren();
    for (const row of state.found.slice(start, start + PER_PAGE)) {
      const line = add(body, "tr");
      add(line, "td", row[KEY], "key");
      kindCell(add(line, "td"), row[KIND]);
      add(line, "td", row[QUESTION], "words");
      add(line, "td", row[OURS], "words");
      add(line, "td", row[SAME] ? "=" : row[THEIRS], row[SAME] ? "words same" : "words");
      add(line, "td", String(row[KL]), "number");
      add(line, "td", { lost: "✗", gained: "✓", "": "" }[row[FLIP]], row[FLIP]);
    }
    const last = Math.min(start + PER_PAGE, state.found.length);
    box.querySelector(".where").textContent =
      state.found.length ? `${start + 1}–${last} / ${state.found.length}` : "0";
  };

  const fill = () => {
    if (!box.open || state.rows) return;
    state.rows = JSON.parse(document.getElementById("samples").textContent);
    pick();
  };
  box.addEventListener("toggle", fill);
  fill();  // the list may have been opened before this ran
  search.addEventListener("input", () => {
    clearTimeout(state.timer);
    state.timer = setTimeout(pick, 120);
  });
  for (const check of checks) check.addEventListener("change", pick);
  for (const button of box.querySelectorAll("button[data-sort]"))
    button.addEventListener("click", () => {
      const by = Number(button.dataset.sort);
      state.down = by === state.sort ? !state.down : by >= KL;
      state.sort = by;
      pick();
    });
  for (const button of box.querySelectorAll("button[data-page]"))
    button.addEventListener("click", () => {
      state.page += Number(button.dataset.page);
      show();
    });
})();
