"use strict";
// Objectives and data sets compared.

const objectives = (leaf) => {
  const inMetric = chosen.metric === "adam" ? of("adam_regimes", leaf) : [];
  const table = inMetric.length ? inMetric : of("regimes", leaf);
  const names = distinct(table.map((row) => row.objective)).reverse();
  const cell = Object.fromEntries(table.map((row) => [`${row.objective}|${row.regime}`, row]));
  at("c-objectives").style.height = `${Math.max(180, 70 + 24 * names.length)}px`;
  draw("c-objectives", !names.length ? "no pairs" : {
    legend: {}, grid: { left: 190, right: 18, top: 40, bottom: 44 },
    tooltip: { trigger: "item", formatter: (p) => { const row = cell[`${names[p.dataIndex]}|${p.seriesName}`]; return row ? `${escape(row.objective)}: ${row.regime}<br>${row.count} pairs, ${shown(row.share)}<br>95 %: ${shown(row.low)} to ${shown(row.high)}` : ""; } },
    xAxis: axis({ type: "value", min: 0, max: 1, name: "share of pairs" }),
    yAxis: axis({ type: "category", data: names, axisLabel: { color: look().soft, width: 180, overflow: "truncate", interval: 0 } }),
    series: Object.entries(REGIMES).map(([regime, color]) => ({ type: "bar", stack: "all", name: regime, color, data: names.map((name) => cell[`${name}|${regime}`]?.share ?? 0) })),
  });
};

const outcomes = (leaf) => {
  const table = of("outcomes", leaf);
  const names = ["loss", "d_w", "d_l", "delta_w", "delta_l", "band_slack"];
  const head = document.createElement("tr");
  head.append(...cells("th", ["objective", ...names], ["run", ...names]));
  const line = (objective) => {
    const row = document.createElement("tr");
    const median = (name) => shown(table.find((r) => r.objective === objective && r.metric === name)?.median);
    row.append(...cells("td", [objective, ...names.map(median)], ["run", ...names]));
    return row;
  };
  at("outcomes").tHead.replaceChildren(...(table.length ? [head] : []));
  at("outcomes").tBodies[0].replaceChildren(...distinct(table.map((row) => row.objective)).map(line));
};

const sets = () => {
  const leaves = numbered.filter((leaf) => leaf.run === chosen.run && leaf.step === chosen.step);
  const box = (leaf) => {
    const x = values(leaf.number, measured("cosine")).sort((a, b) => a - b);
    return x.length ? [0.05, 0.25, 0.5, 0.75, 0.95].map((share) => quantile(x, share)) : [];
  };
  // runs that were each measured on their own data set: at the selected step, or else at their own last one
  const others = leaves.length > 1 ? [] : distinct(data.leaves.map((leaf) => leaf.dataset)).filter((set) => set !== chosen.dataset).map((set) => {
    const own = numbered.filter((leaf) => leaf.dataset === set);
    return own.find((leaf) => leaf.step === chosen.step) ?? own[own.length - 1];
  });
  const named = (leaf) => (leaf.step === chosen.step ? `${leaf.dataset} (${leaf.run})` : `${leaf.dataset} (${leaf.run}, step ${leaf.step ?? "–"})`);
  const all = [...leaves, ...others];
  draw("c-sets", all.length < 2 ? "one data set only" : {
    tooltip: { formatter: (p) => { const [, ...q] = p.value; return `${escape(p.name)}<br>5 %, quarter, median, three quarters, 95 %:<br>${q.map(shown).join(", ")}`; } },
    grid: { left: 62, right: 18, top: 16, bottom: 60 },
    xAxis: axis({ type: "category", data: all.map((leaf) => (others.length ? named(leaf) : leaf.dataset)), axisLabel: { color: look().soft, interval: 0, overflow: "break", width: 130, lineHeight: 15 } }),
    yAxis: axis({ type: "value", name: "cosine", nameGap: 46, scale: true }),
    series: [{ type: "boxplot", name: "cosine", data: all.map(box), itemStyle: { color: "#56b4e955", borderColor: "#0072b2" } }],
  });
};
