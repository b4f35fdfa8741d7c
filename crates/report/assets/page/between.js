"use strict";
// What pairs do to each other.

const batches = (leaf) => {
  const table = of("batch_sizes", leaf), names = distinct(table.map((row) => row.objective));
  document.querySelectorAll(".of-batches").forEach((figure) => { figure.hidden = !names.length; });
  if (!names.length) return;
  if (!names.includes(chosen.objective)) chosen.objective = names[0];
  options(at("between-objective"), names, chosen.objective);
  const rows = table.filter((row) => row.objective === chosen.objective);
  const lines = (what, name, more) => ({
    legend: {}, tooltip: { trigger: "axis", valueFormatter: plain }, xAxis: axis({ type: "category", name: "batch size", data: rows.map((row) => String(row.batch_size)) }),
    yAxis: axis({ type: "value", name, nameGap: 52, ...more }),
    series: what.flatMap((part, i) => ["w", "l"].map((branch, k) => line(`${part}, ${k ? "rejected" : "chosen"}`, rows.map((row) => number(row[`${part}_${branch}`])), {
      color: COLOURS[2 * i + (name === "share" ? 1 : 0)], lineStyle: { type: k ? "dashed" : "solid" }, symbol: k ? "emptyCircle" : "circle",
    }))),
  });
  draw("c-batch", lines(["own", "others"], "change"));
  draw("c-turned", lines(["falls", "turned"], "share", { min: 0, max: 1 }));
};
const spectrum = (leaf) => {
  const rows = of("spectrum", leaf);
  at("f-spectrum").hidden = !rows.length;
  if (rows.length) draw("c-spectrum", {
    tooltip: { formatter: (p) => `eigenvalue ${p.value[0]}<br>${shown(100 * p.value[1])} % of their sum` },
    xAxis: axis({ type: "log", name: "rank", min: 1 }), yAxis: axis({ type: "log", name: "share", nameGap: 52 }),
    series: [line("share", rows.filter((row) => row.share > 0).map((row) => [row.rank, row.share]), { symbolSize: 4, color: COLOURS[0] })],
  });
};
const rowOf = (leaf, pair) => data.pairs.leaf.findIndex((of, i) => of === leaf && data.pairs.pair[i] === pair);
const named = (leaf, pair) => { const i = rowOf(leaf, pair); return i >= 0 && data.pairs.id[i] ? `${pair} (${data.pairs.id[i]})` : String(pair); };
const heat = (leaf) => {
  const map = data.heat_maps.find((one) => one.leaf === leaf);
  at("f-heat").hidden = !map;
  if (!map) return;
  const n = map.pairs.length, value = at("heat-value").value, cells = map.cosines[value], cut = Number(at("heat-cut").value);
  const edges = map.distances.flatMap((distance, place) => (distance !== null && distance > cut ? [place] : []));
  const sampled = n < map.pairs_in_all ? `; ${n} of ${map.pairs_in_all} pairs, evenly along their order` : "";
  at("heat-note").textContent = `${cut.toFixed(2)}: ${edges.length + 1} cluster${edges.length ? "s" : ""}${sampled}`;
  // a pair with itself is at the end of every scale; beyond what most others reach colours are as at its ends
  const sizes = cells.filter((x, i) => x !== null && Math.floor(i / n) !== i % n).map(Math.abs).sort((a, b) => a - b);
  const most = Math.max(0.05, sizes.length ? quantile(sizes, 0.99) / 1000 : 1);
  at("c-heat").style.height = `${Math.min(820, 160 + 8 * n)}px`;
  const pairs = map.pairs.map(String), label = { color: look().soft, fontSize: 10, hideOverlap: true };
  draw("c-heat", {
    grid: { left: 62, right: 90, top: 16, bottom: 60 },
    tooltip: { formatter: (p) => `pair ${escape(named(leaf, map.pairs[p.value[1]]))}<br>pair ${escape(named(leaf, map.pairs[p.value[0]]))}<br>cosine ${shown(p.value[2])}` },
    xAxis: axis({ type: "category", data: pairs, name: "pair", axisLabel: label }), yAxis: axis({ type: "category", inverse: true, data: pairs, axisLabel: label }),
    // a line between clusters has one place on both axes, and stays where only one of them is in the window
    dataZoom: [{ type: "inside", xAxisIndex: 0, filterMode: "none" }, { type: "inside", yAxisIndex: 0, filterMode: "none" }],
    visualMap: { seriesIndex: 0, min: -most, max: most, text: [most.toFixed(2), `−${most.toFixed(2)}`], orient: "vertical", right: 0, top: "middle", inRange: { color: DIVERGING }, textStyle: { color: look().soft }, precision: 2 },
    series: [{
      type: "heatmap", name: value, progressive: 0, data: cells.flatMap((x, i) => (x === null ? [] : [[i % n, Math.floor(i / n), x / 1000]])),
    }, {
      type: "custom", name: "clusters", silent: true, clip: true, data: edges.map((place) => [place, place]),
      // between two cells: half a cell before the later one
      renderItem: ({ coordSys: { x, y, width, height } }, api) => {
        const [column, row] = api.coord([api.value(0), api.value(1)]), [w, h] = api.size([1, 1]);
        const stroke = (shape) => ({ type: "line", shape, style: { stroke: look().text, lineWidth: 1.5 } });
        return { type: "group", children: [
          stroke({ x1: column - w / 2, y1: y, x2: column - w / 2, y2: y + height }), stroke({ x1: x, y1: row - h / 2, x2: x + width, y2: row - h / 2 }),
        ] };
      },
    }],
  }, "canvas");
  charts["c-heat"].on("click", (p) => p.seriesType === "heatmap" && couple(leaf, map.pairs[p.value[1]], map.pairs[p.value[0]]));
  for (const id of ["couple-a", "couple-b"]) options(at(id), map.pairs, map.pairs[id === "couple-a" ? 0 : Math.min(1, n - 1)], (pair) => named(leaf, pair));
};
const couple = (leaf, a, b) => {
  const map = data.heat_maps.find((one) => one.leaf === leaf), place = (pair) => map?.pairs.indexOf(pair) ?? -1;
  at("couple-title").textContent = `Pairs ${named(leaf, a)} and ${named(leaf, b)}: ${data.leaves[leaf].title}`;
  const cosine = (value, row, column) => (place(row) < 0 || place(column) < 0 ? null : map.cosines[value][place(row) * map.pairs.length + place(column)]);
  const said = (x) => (x === null || x === undefined ? "–" : shown(x / 1000));
  const numbers = [["chosen and chosen", cosine("ww", a, b)], [`chosen of ${a}, rejected of ${b}`, cosine("wl", a, b)], [`rejected of ${a}, chosen of ${b}`, cosine("wl", b, a)], ["rejected and rejected", cosine("ll", a, b)], ["directions g_w − g_l", cosine("dd", a, b)]];
  at("couple-numbers").replaceChildren(...numbers.map(([name, x]) => {
    const item = document.createElement("div");
    item.append(...cells("dt", [`cosine, ${name}`], [name]), ...cells("dd", [said(x)], [name]));
    return item;
  }));
  at("couple-texts").replaceChildren(...[a, b].map((pair) => {
    const text = data.texts.pairs[`${leaf}/${pair}`], side = document.createElement("div");
    const add = (tag, textContent) => side.append(Object.assign(document.createElement(tag), { textContent }));
    add("h3", `Pair ${named(leaf, pair)}`);
    if (!text) add("p", "The text of this pair is not among those kept in this file.");
    else for (const [title, of] of [["Prompt", text.prompt ?? "(token ids: no text)"], ["Chosen", text.chosen.map((token) => token[0]).join("")], ["Rejected", text.rejected.map((token) => token[0]).join("")]]) {
      add("h4", title);
      add("pre", of);
    }
    return side;
  }));
  if (!at("couple").open) at("couple").showModal();
};
const between = (leaf) => {
  at("between").hidden = false;
  split();
  batches(leaf);
  spectrum(leaf);
  heat(leaf);
  at("between").hidden = [...at("between").querySelectorAll("figure")].every((figure) => figure.hidden);
};
