"use strict";
// The list of pairs.

const SHOWN = ["pair", "id", "regime_dpo", "cosine", "wl_over_min", "norm_ratio", "logp_chosen", "logp_rejected", "chosen_tokens", "rejected_tokens", "edit_distance", "harm", "own_w", "others_w"]
  .filter((name) => data.pairs[name]);
const list = { order: "pair", down: false, page: 0, rows: [] };
const PAGE = 25;
const readable = (i) => `${data.pairs.leaf[i]}/${data.pairs.pair[i]}` in data.texts.pairs;
const filter = () => {
  const { pairs } = data;
  const leaf = selected(), regime = at("f-regime").value, text = at("f-text").value.trim().toLowerCase(), read = at("f-read").checked;
  list.rows = [];
  for (let i = 0; i < (pairs.leaf || []).length; i++) {
    if (pairs.leaf[i] !== leaf || (regime && pairs[measured("regime_dpo")][i] !== regime) || (read && !readable(i))) continue;
    if (text && String(pairs.pair[i]) !== text && !String(pairs.id[i] ?? "").toLowerCase().includes(text)) continue;
    list.rows.push(i);
  }
  const column = pairs[measured(list.order)], word = typeof column?.find((x) => x !== null) === "string" && !["cosine", "norm_ratio", "wl_over_min"].includes(list.order);
  const compare = (a, b) => {
    const [x, y] = word ? [column[a], column[b]] : [number(column[a]), number(column[b])];
    // what is not defined comes last, whichever way
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    return (x < y ? -1 : x > y ? 1 : 0) * (list.down ? -1 : 1) || a - b;
  };
  list.rows.sort(compare);
  list.page = 0;
  page();
};
const page = () => {
  const { pairs } = data, pages = Math.max(1, Math.ceil(list.rows.length / PAGE));
  const body = at("pairs").tBodies[0];
  body.replaceChildren(...list.rows.slice(list.page * PAGE, (list.page + 1) * PAGE).map((i) => {
    const row = document.createElement("tr");
    row.tabIndex = 0;
    row.dataset.at = i;
    row.append(...cells("td", SHOWN.map((name) => shown(pairs[measured(name)][i])), SHOWN));
    row.onclick = () => open(i);
    row.onkeydown = (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(i); } };
    return row;
  }));
  const sampled = data.pairs.leaf?.length < data.pairs_in_all ? `; of ${data.pairs_in_all} in all, ${data.pairs.leaf.length} are in this file` : "";
  at("count").textContent = `${list.rows.length} pairs${sampled}`;
  at("page").textContent = `page ${list.page + 1} of ${pages}`;
  at("before").disabled = list.page === 0;
  at("after").disabled = list.page + 1 >= pages;
  for (const head of at("pairs").tHead.querySelectorAll("th")) head.setAttribute("aria-sort", head.dataset.name !== list.order ? "none" : list.down ? "descending" : "ascending");
};
const table = () => {
  const row = document.createElement("tr");
  row.append(...SHOWN.map((name) => {
    const head = document.createElement("th"), button = document.createElement("button");
    head.dataset.name = name;
    if (TEXT.includes(name)) head.className = "text";
    button.type = "button";
    button.textContent = name.replaceAll("_", " ");
    button.onclick = () => { list.down = list.order === name ? !list.down : false; list.order = name; filter(); };
    head.append(button);
    return head;
  }));
  at("pairs").tHead.replaceChildren(row);
  Object.keys(REGIMES).forEach((regime) => at("f-regime").append(Object.assign(document.createElement("option"), { value: regime, textContent: regime })));
  at("f-regime").onchange = at("f-text").oninput = at("f-read").onchange = filter;
  at("filters").onsubmit = (event) => event.preventDefault();
  at("before").onclick = () => { list.page -= 1; page(); };
  at("after").onclick = () => { list.page += 1; page(); };
};
