"use strict";
// Where pairs lie, and what their cosine goes with.

const distributions = (leaf) => {
  histogram("c-hist-cosine", values(leaf, measured("cosine")), -1, 1, "cosine");
  const condition = values(leaf, "wl_over_min").sort((a, b) => a - b);
  const ends = condition.length ? [Math.floor(Math.min(-1, quantile(condition, 0.01))), Math.ceil(Math.max(1.5, quantile(condition, 0.99)))] : [0, 1];
  histogram("c-hist-condition", condition, ends[0], ends[1], "wl / min(ww, ll)");
  const { pairs } = data;
  const points = {};
  for (let i = 0; i < (pairs.leaf || []).length; i++) if (pairs.leaf[i] === leaf) {
    const [x, y] = [Math.sqrt(pairs[measured("ww")][i]), Math.sqrt(pairs[measured("ll")][i])];
    if (x > 0 && y > 0) (points[pairs[measured("regime_dpo")][i]] ||= []).push({ value: [x, y], at: i });
  }
  draw("c-scatter", !Object.keys(points).length ? "no pairs" : {
    legend: {}, tooltip: { formatter: (p) => `pair ${shown(pairs.pair[p.data.at])}${pairs.id[p.data.at] ? ` (${escape(pairs.id[p.data.at])})` : ""}<br>‖g_w‖ ${shown(p.value[0])}, ‖g_l‖ ${shown(p.value[1])}<br>cosine ${shown(pairs[measured("cosine")][p.data.at])}` },
    xAxis: axis({ type: "log", name: "‖g_w‖", scale: true, minorTick: { show: true } }), yAxis: axis({ type: "log", name: "‖g_l‖", nameGap: 46, scale: true }),
    series: Object.entries(REGIMES).filter(([regime]) => points[regime]).map(([regime, color], i) => ({ type: "scatter", name: regime, color, symbol: ["circle", "triangle", "diamond", "rect", "pin"][i], symbolSize: 6, itemStyle: { opacity: 0.65 }, data: points[regime] })),
  }, "canvas");
  charts["c-scatter"]?.on("click", (p) => p.data?.at !== undefined && open(p.data.at));

  const related = of("relations", leaf).filter((row) => row.metric === "cosine" && row.spearman !== null).reverse();
  draw("c-relations", !related.length ? "nothing varies" : {
    grid: { left: 130, right: 18, top: 16, bottom: 44 },
    tooltip: { formatter: (p) => { const row = related[p.dataIndex]; return `${row.against}<br>${shown(row.spearman)} (${shown(row.low)} to ${shown(row.high)})<br>${row.count} pairs`; } },
    xAxis: axis({ type: "value", min: -1, max: 1, name: "Spearman's correlation" }), yAxis: axis({ type: "category", data: related.map((row) => row.against) }),
    series: [
      { type: "custom", name: "interval", data: related.map((row, i) => [i, number(row.low), number(row.high)]), encode: { x: [1, 2], y: 0 }, renderItem: (_, api) => {
        const [a, b] = [api.coord([api.value(1), api.value(0)]), api.coord([api.value(2), api.value(0)])];
        return { type: "line", shape: { x1: a[0], y1: a[1], x2: b[0], y2: b[1] }, style: { stroke: "#0072b2", lineWidth: 3 } };
      } },
      { type: "scatter", name: "correlation", color: "#0072b2", symbolSize: 9, data: related.map((row, i) => [number(row.spearman), i]) },
    ],
  });
};

const bins = (leaf) => {
  const table = of("bins", leaf).filter((row) => row.metric === "cosine" && row.count > 0);
  const kinds = distinct(table.map((row) => row.against));
  const kind = kinds.includes(chosen.against) ? chosen.against : kinds[0] ?? null;
  options(at("bin-by"), kinds, kind, (name) => name.replaceAll("_", " "));
  const rows = table.filter((row) => row.against === kind);
  const range = (row) => (row.from === row.to ? shown(row.from) : `${shown(row.from)} to ${shown(row.to)}`);
  const stroke = (x1, y1, x2, y2, lineWidth, colour) => ({ type: "line", shape: { x1, y1, x2, y2 }, style: { stroke: colour, lineWidth } });
  draw("c-bins", !rows.length ? "no values" : {
    grid: { left: 62, right: 18, top: 16, bottom: 78 },
    tooltip: { formatter: (p) => { const row = rows[p.dataIndex]; return `${escape(kind.replaceAll("_", " "))} ${range(row)}<br>median ${shown(row.median)} (${shown(row.low)} to ${shown(row.high)})<br>quartiles ${shown(row.q25)}, ${shown(row.q75)}<br>${row.count} pairs`; } },
    xAxis: axis({ type: "category", data: rows.map(range), axisLabel: { color: look().soft, rotate: 35, interval: 0, fontSize: 10 } }),
    yAxis: axis({ type: "value", name: "cosine", nameGap: 46, scale: true }),
    series: [
      { type: "custom", name: "quartiles", data: rows.map((row, i) => [i, number(row.q25), number(row.q75)]), encode: { x: 0, y: [1, 2] }, renderItem: (_, api) => {
        const [a, b] = [api.coord([api.value(0), api.value(1)]), api.coord([api.value(0), api.value(2)])];
        return stroke(a[0], a[1], b[0], b[1], 9, "#56b4e988");
      } },
      { type: "custom", name: "interval", data: rows.map((row, i) => [i, number(row.low), number(row.high)]), encode: { x: 0, y: [1, 2] }, renderItem: (_, api) => {
        const [a, b] = [api.coord([api.value(0), api.value(1)]), api.coord([api.value(0), api.value(2)])];
        return stroke(a[0], a[1], b[0], b[1], 3, "#0072b2");
      } },
      { type: "scatter", name: "median", color: "#0072b2", symbolSize: 8, data: rows.map((row) => number(row.median)) },
    ],
  });
};
