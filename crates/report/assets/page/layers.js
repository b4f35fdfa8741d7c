"use strict";
// Where in the model gradients meet: layers, modules, experts.

const layers = (leaf) => {
  // experts have a view of their own
  const table = of("modules", leaf).filter((row) => !/(^|\.)experts\.\d+\./.test(row.module));
  const what = at("layer-value").value;
  const modules = distinct(table.map((row) => row.module));
  const outside = "outside";
  const levels = distinct(table.map((row) => (row.layer === null ? outside : row.layer))).sort((a, b) => (a === outside ? -1 : b === outside ? 1 : a - b));
  const cells = table.map((row) => [modules.indexOf(row.module), levels.indexOf(row.layer === null ? outside : row.layer), number(row[what]), row]);
  const filled = cells.filter((cell) => finite(cell[2]));
  const most = what === "median" ? 1 : Math.max(1e-12, ...filled.map((cell) => Math.abs(cell[2])));
  at("c-layers").style.height = `${Math.max(260, 130 + 20 * levels.length)}px`;
  draw("c-layers", !filled.length ? "no params.parquet in these records" : {
    tooltip: { formatter: (p) => { const row = p.data.row; return `${escape(row.module)}${row.layer === null ? "" : `, layer ${row.layer}`}<br>median cosine ${shown(row.median)} (${shown(row.low)} to ${shown(row.high)})<br>share of wl ${shown(row.wl_share)}<br>${row.count} pairs`; } },
    grid: { left: 62, right: 90, top: 16, bottom: 100 },
    xAxis: axis({ type: "category", data: modules, axisLabel: { color: look().soft, rotate: 40, interval: 0 }, splitArea: { show: false } }),
    yAxis: axis({ type: "category", data: levels.map(String), name: "layer", nameGap: 46 }),
    visualMap: { min: -most, max: most, calculable: false, text: [shown(most), shown(-most)], orient: "vertical", right: 0, top: "middle", inRange: { color: DIVERGING }, textStyle: { color: look().soft }, formatter: shown },
    series: [{ type: "heatmap", name: what, data: filled.map((cell) => ({ value: cell.slice(0, 3), row: cell[3] })) }],
  });
};

const experts = (leaf) => {
  if (!at("experts")) return;
  const table = of("experts", leaf).map((row) => ({ ...row, difference: row.share_chosen - row.share_rejected }));
  const overlap = metric(leaf, "routing_overlap"), what = at("expert-value").value;
  at("routing").textContent = overlap ? `Median overlap of a pair's two routings ${shown(overlap.median)} (${shown(overlap.low)} to ${shown(overlap.high)}).` : "";
  const numbers = distinct(table.map((row) => row.expert)).sort((a, b) => a - b);
  const levels = distinct(table.map((row) => row.layer)).sort((a, b) => a - b);
  const filled = table.filter((row) => finite(number(row[what])));
  const most = Math.max(1e-12, ...filled.map((row) => Math.abs(number(row[what]))));
  at("c-experts").style.height = `${Math.max(260, 130 + 20 * levels.length)}px`;
  draw("c-experts", !filled.length ? "no expert of these records has it" : {
    tooltip: { formatter: (p) => { const row = p.data.row; return `layer ${row.layer}, expert ${row.expert}<br>${row.rows_chosen} rows of chosen (${shown(row.share_chosen)})<br>${row.rows_rejected} of rejected (${shown(row.share_rejected)})<br>share of wl ${shown(row.wl_share) || "–"}`; } },
    grid: { left: 62, right: 90, top: 16, bottom: 60 },
    xAxis: axis({ type: "category", data: numbers.map(String), name: "expert", splitArea: { show: false } }),
    yAxis: axis({ type: "category", data: levels.map(String), name: "layer", nameGap: 46 }),
    visualMap: { min: -most, max: most, calculable: false, text: [shown(most), shown(-most)], orient: "vertical", right: 0, top: "middle", inRange: { color: DIVERGING }, textStyle: { color: look().soft }, formatter: shown },
    series: [{ type: "heatmap", name: what, data: filled.map((row) => ({ value: [numbers.indexOf(row.expert), levels.indexOf(row.layer), number(row[what])], row })) }],
  });
};
