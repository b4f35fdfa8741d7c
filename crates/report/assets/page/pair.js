"use strict";
// One pair: its texts, tokens and matrices.

let opened = null;
const mix = (share, colour) => `color-mix(in srgb, ${colour} ${Math.round(100 * Math.min(1, Math.max(0, share)))}%, transparent)`;
const sum = (x) => x.reduce((a, b) => a + b, 0);
const paint = () => {
  if (!opened) return;
  const { text, matrix } = opened, mode = at("colour").value;
  const pull = matrix && { chosen: matrix.wl.map(sum), rejected: (matrix.wl[0] || []).map((_, c) => sum(matrix.wl.map((row) => row[c]))) };
  const most = pull && Math.max(1e-300, ...[...pull.chosen, ...pull.rejected].map(Math.abs));
  at("legend").textContent = { logp: "darker: less probable", shared: "coloured: contrast tokens, which the other response does not share", pull: "red: adds to wl; blue: takes from it" }[mode] ?? "";
  for (const name of ["chosen", "rejected"]) {
    at(`pair-${name}`).replaceChildren(...(text?.[name] ?? []).map(([token, logp, shared], i) => {
      const span = document.createElement("span");
      span.textContent = token;
      span.title = `token ${i}: log-probability ${shown(logp)}${shared ? ", shared" : ", contrast"}${pull ? `, adds ${shown(pull[name][i])} to wl` : ""}`;
      if (mode === "logp" && logp !== null) span.style.background = mix(-logp / 8, "#e69f00");
      if (mode === "shared" && !shared) span.style.background = mix(0.55, "#56b4e9");
      if (mode === "pull" && pull) span.style.background = mix(Math.abs(pull[name][i]) / most, pull[name][i] > 0 ? "#b2182b" : "#2166ac");
      return span;
    }));
  }
};
const matrix = () => {
  at("pair-matrix").hidden = !opened?.matrix;
  if (!opened?.matrix) return;
  const block = at("block").value, inner = opened.matrix[block];
  const side = { w: "chosen", l: "rejected" };
  const [a, b] = [side[block[0]], side[block[1]]];
  const norm = { chosen: opened.matrix.ww.map((row, i) => Math.sqrt(Math.max(0, row[i]))), rejected: opened.matrix.ll.map((row, i) => Math.sqrt(Math.max(0, row[i]))) };
  const label = (name, i) => opened.text?.[name]?.[i]?.[0] ?? `[${i}]`;
  // the position in front keeps repeated tokens apart
  const labels = (name, count) => Array.from({ length: count }, (_, i) => `${i} ${label(name, i)}`);
  const entries = inner.flatMap((row, r) => row.map((x, c) => {
    const size = norm[a][r] * norm[b][c];
    return { value: [c, r, size > 0 ? Math.max(-1, Math.min(1, x / size)) : null], inner: x };
  }));
  const columns = inner[0]?.length ?? 0;
  at("c-matrix").style.height = `${Math.max(300, 150 + 15 * inner.length)}px`;
  // a label has room of its own; what is wider than the window is scrolled
  at("c-matrix").style.minWidth = `${190 + 13 * columns}px`;
  const tokenLabel = { color: look().soft, interval: 0, fontSize: 10, fontFamily: "monospace", width: 90, overflow: "truncate", formatter: (text) => text.replace(/\n/g, "⏎") };
  draw("c-matrix", {
    grid: { left: 110, right: 80, top: 10, bottom: 110 },
    tooltip: { formatter: (p) => `${escape(a)} ${p.value[1]}: ${escape(label(a, p.value[1]))}<br>${escape(b)} ${p.value[0]}: ${escape(label(b, p.value[0]))}<br>cosine ${shown(p.value[2])}<br>inner product ${shown(p.data.inner)}` },
    xAxis: axis({ type: "category", data: labels(b, columns), axisLabel: { ...tokenLabel, rotate: 90 } }),
    yAxis: axis({ type: "category", inverse: true, data: labels(a, inner.length), axisLabel: tokenLabel }),
    visualMap: { min: -1, max: 1, text: ["1", "-1"], orient: "vertical", right: 0, top: "middle", inRange: { color: DIVERGING }, textStyle: { color: look().soft }, precision: 1 },
    series: [{ type: "heatmap", name: block, data: entries }],
  }, "canvas");
};
const open = (i) => {
  const { pairs } = data, key = `${pairs.leaf[i]}/${pairs.pair[i]}`;
  opened = { text: data.texts.pairs[key], matrix: data.texts.matrices[key] };
  at("pair-title").textContent = `Pair ${shown(pairs.pair[i])}${pairs.id[i] ? ` (${pairs.id[i]})` : ""}: ${data.leaves[pairs.leaf[i]].title}`;
  at("pair-numbers").replaceChildren(...Object.keys(pairs).filter((name) => !["leaf", "pair", "id"].includes(name) && pairs[name][i] !== null).map((name) => {
    const item = document.createElement("div");
    item.append(...cells("dt", [name.replaceAll("_", " ")], [name]), ...cells("dd", [shown(pairs[name][i])], [name]));
    item.lastChild.title = String(pairs[name][i]);
    return item;
  }));
  const pulled = rows(data.tables.drags, (k) => data.tables.drags.leaf[k] === pairs.leaf[i] && data.tables.drags.pair[k] === pairs.pair[i]);
  at("pair-drags").replaceChildren(...[["dragged_by", "Its chosen response is pulled down most by steps on"], ["drags", "A step on it pulls down most the chosen responses of"]].flatMap(([direction, text]) => {
    const some = pulled.filter((row) => row.direction === direction);
    const others = some.flatMap((row) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: row.other, title: `by ${shown(row.change)} for each unit of η` });
      button.onclick = () => couple(pairs.leaf[i], pairs.pair[i], row.other);
      return [button, document.createTextNode(" ")];
    });
    return some.length ? [document.createTextNode(`${text} `), ...others, document.createElement("br")] : [];
  }));
  at("pair-prompt").textContent = opened.text ? opened.text.prompt ?? "(token ids: no text)" : "The text of this pair is not among those kept in this file.";
  const modes = [["logp", "log-probability"], ["shared", "shared or contrast"], ...(opened.matrix ? [["pull", "part in wl"]] : [])];
  at("colour").replaceChildren(...modes.map(([value, textContent]) => Object.assign(document.createElement("option"), { value, textContent })));
  paint();
  at("pair").showModal();
  matrix();
};
at("colour").onchange = paint;
at("block").onchange = matrix;
