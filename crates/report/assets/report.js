"use strict";
// The page of a report: draws what its data element holds. Text from the data is shown through textContent, or escaped.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const escape = (text) => echarts.format.encodeHTML(String(text));
  const palette = JSON.parse(document.getElementById("palette").textContent);
  const COLOURS = palette.series;
  const REGIMES = Object.fromEntries(palette.regimes);
  const DIVERGING = ["#2166ac", "#67a9cf", "#f2f2f2", "#ef8a62", "#b2182b"];

  const number = (x) => (x === null || x === undefined ? null : Number(x));
  const finite = (x) => x !== null && Number.isFinite(x);
  const shown = (x) => {
    if (x === null || x === undefined) return "";
    if (typeof x === "string" && !["Infinity", "-Infinity", "NaN"].includes(x)) return x;
    const value = Number(x);
    if (!Number.isFinite(value)) return value > 0 ? "∞" : value < 0 ? "−∞" : "not a number";
    if (Number.isInteger(value)) return String(value);
    const size = Math.abs(value);
    return size >= 1e5 || size < 1e-3 ? value.toExponential(3) : value.toFixed(size < 10 ? 4 : size < 1000 ? 2 : 0);
  };

  // ---- tables as lists by column
  const rows = (table, keep) => {
    const names = Object.keys(table);
    const count = names.length ? table[names[0]].length : 0;
    const out = [];
    for (let i = 0; i < count; i++) if (keep(i)) out.push(Object.fromEntries(names.map((name) => [name, table[name][i]])));
    return out;
  };
  const of = (name, leaf) => rows(data.tables[name], (i) => data.tables[name].leaf[i] === leaf);
  const metric = (leaf, name) => of("metrics", leaf).find((row) => row.metric === name);

  // ---- what is selected
  // runs that train, or were not measured, are known by their own records alone
  const measuredRuns = new Set(data.leaves.map((leaf) => leaf.run));
  const alone = data.training.map((run) => run.run).filter((name) => ![...measuredRuns].some((run) => run === name || run.endsWith(`/${name}`)));
  const runs = [...measuredRuns, ...alone];
  const chosen = { run: runs[0], step: null, dataset: null, against: "edit_distance", objective: null, metric: "gradient" };
  // a page that is watched was loaded again while it was read
  if (document.body.dataset.watched) {
    const before = JSON.parse(sessionStorage.getItem("chosen") ?? "{}");
    if (runs.includes(before.run)) Object.assign(chosen, before);
  }
  // a column in the metric that is selected, where it was measured in it
  const measured = (name) => (chosen.metric === "adam" && data.pairs[`adam_${name}`] ? `adam_${name}` : name);
  const leafOf = (run, step, dataset) =>
    data.leaves.findIndex((leaf) => leaf.run === run && leaf.step === step && leaf.dataset === dataset);
  const selected = () => leafOf(chosen.run, chosen.step, chosen.dataset);
  const numbered = data.leaves.map((leaf, number) => ({ ...leaf, number }));
  const stepsOf = (run, dataset) =>
    numbered.filter((leaf) => leaf.run === run && leaf.dataset === dataset);
  const distinct = (list) => [...new Set(list)];
  const options = (select, values, value, text = String) => {
    select.replaceChildren(
      ...values.map((v) => Object.assign(document.createElement("option"), { value: JSON.stringify(v), textContent: text(v) })),
    );
    select.value = JSON.stringify(value);
  };
  const settle = () => {
    const sets = alone.includes(chosen.run) ? [""] : distinct(data.leaves.filter((leaf) => leaf.run === chosen.run).map((leaf) => leaf.dataset));
    if (!sets.includes(chosen.dataset)) chosen.dataset = sets[0];
    const steps = stepsOf(chosen.run, chosen.dataset).map((leaf) => leaf.step);
    if (!steps.includes(chosen.step)) chosen.step = steps[steps.length - 1] ?? null;
    options(at("run"), runs, chosen.run);
    options(at("dataset"), sets, chosen.dataset);
    options(at("step"), steps.length ? steps : [null], chosen.step, (step) => (step === null ? "–" : String(step)));
  };

  // a path may stand in front of a run's name, to tell it from another one
  const trainingOf = (name) => data.training.find((run) => run.run === name || name.endsWith(`/${run.run}`));

  // ---- charts
  const charts = {};
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const look = () => ({ text: style("--text"), soft: style("--soft"), line: style("--line"), ground: style("--ground") });
  const axis = (more) => {
    const { soft, line } = look();
    return {
      nameTextStyle: { color: soft }, axisLabel: { color: soft, hideOverlap: true }, axisLine: { lineStyle: { color: line } },
      splitLine: { lineStyle: { color: line } }, nameLocation: "middle", nameGap: 26, ...more,
    };
  };
  // what a screen reader says of a chart: its caption, and where each series lies
  const described = (element, option) => {
    const caption = element.closest("figure")?.querySelector("figcaption")?.cloneNode(true);
    caption?.querySelectorAll("select").forEach((select) => select.replaceWith(at(select.id).selectedOptions[0]?.textContent ?? ""));
    const of = [option.series].flat().slice(0, 8).map((series) => {
      const values = (series.data ?? []).map((d) => { const v = d?.value ?? d; return number(Array.isArray(v) ? v[v.length - 1] : v); }).filter(finite);
      if (!values.length) return "";
      const [low, high] = values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
      return `${series.name}: ${values.length} values from ${shown(low)} to ${shown(high)}`;
    });
    const title = caption?.textContent ?? element.closest("section, dialog")?.querySelector("h2, label")?.textContent ?? "";
    return [title.replace(/\s+/g, " ").trim(), of.filter(Boolean).join("; ")].filter(Boolean).map((part) => `${part}.`).join(" ");
  };
  const draw = (id, option, renderer = "svg") => {
    const element = at(id);
    // without its series first: a chart that still draws many points step by step throws where it is gone
    charts[id]?.clear();
    charts[id]?.dispose();
    delete charts[id];
    element.classList.toggle("empty", typeof option === "string");
    element.replaceChildren();
    element.removeAttribute("aria-label");
    element.removeAttribute("role");
    if (typeof option === "string") {
      element.textContent = option;
      return;
    }
    const { text, soft, ground, line } = look();
    charts[id] = echarts.init(element, null, { renderer });
    element.setAttribute("role", "img");
    charts[id].setOption({
      animation: false, color: COLOURS, textStyle: { color: text, fontFamily: "system-ui, sans-serif" },
      aria: { enabled: true, label: { description: described(element, option) }, decal: { show: ["c-regimes", "c-objectives", "c-split"].includes(id) } },
      grid: { left: 62, right: 18, top: option.legend ? 46 : 16, bottom: 44 },
      ...option,
      legend: option.legend && { type: "scroll", top: 0, textStyle: { color: soft }, pageTextStyle: { color: soft }, ...option.legend },
      tooltip: { backgroundColor: ground, borderColor: line, textStyle: { color: text }, confine: true, ...option.tooltip },
    });
  };
  const stepAxis = () => axis({ type: "value", name: "step", min: "dataMin", max: "dataMax" });
  const line = (name, points, more = {}) => ({
    type: "line", name, data: points, showSymbol: true, symbolSize: 5, connectNulls: false, ...more,
  });
  const plain = (value) => (Array.isArray(value) ? shown(value[1]) : shown(value));

  const dynamics = () => {
    const tracked = runs.filter((run) => stepsOf(run, chosen.dataset).length > 1 || (alone.includes(run) && trainingOf(run).steps.at?.length > 1));
    const none = "one step only: nothing moves";
    const median = (run, name) => {
      if (!alone.includes(run)) return stepsOf(run, chosen.dataset).map((leaf) => [leaf.step, number(metric(leaf.number, name)?.median)]);
      const { steps } = trainingOf(run);
      const value = (i) => (name === "margin" ? steps.logp_chosen[i] - steps.logp_rejected[i] : number(steps[name]?.[i] ?? null));
      return (steps.at ?? []).map((step, i) => [step, value(i)]);
    };
    const colour = (run) => COLOURS[runs.indexOf(run) % COLOURS.length];
    const lines = (names, yName, more = {}) => ({
      legend: { data: tracked }, tooltip: { trigger: "axis", valueFormatter: plain }, xAxis: stepAxis(),
      yAxis: axis({ type: "value", name: yName, nameGap: 46, scale: true, ...more }),
      series: tracked.flatMap((run) =>
        names.map((name, i) => line(run, median(run, name), {
          color: colour(run), lineStyle: { type: i ? "dashed" : "solid", width: run === chosen.run ? 3 : 1.5 },
          symbol: i ? "emptyCircle" : "circle",
        })),
      ),
    });
    const any = tracked.length > 0;
    at("dynamics").hidden = !any && !trainingOf(chosen.run);
    draw("c-logp", any ? lines(["logp_chosen", "logp_rejected"], "log-probability") : none);
    draw("c-margin", any ? lines(["margin"], "margin") : none);
    const cosine = tracked.every((run) => stepsOf(run, chosen.dataset).every((leaf) => metric(leaf.number, measured("cosine")))) ? measured("cosine") : "cosine";
    draw("c-cosine", any ? lines([cosine], "cosine") : none);
    draw("c-norms", any ? lines(["norm_chosen", "norm_rejected"], "norm", { type: "log" }) : none);

    const own = stepsOf(chosen.run, chosen.dataset);
    const share = (leaf, regime) => of("digest", leaf)[0]?.[regime.replace("-", "_")] ?? null;
    draw("c-regimes", own.length < 2 ? none : {
      legend: {}, tooltip: { trigger: "axis", valueFormatter: plain }, xAxis: stepAxis(),
      yAxis: axis({ type: "value", min: 0, max: 1, name: "share", nameGap: 46 }),
      series: Object.entries(REGIMES).map(([regime, color]) => line(regime, own.map((leaf) => [leaf.step, share(leaf.number, regime)]), {
        stack: "all", areaStyle: { opacity: 0.85 }, color, showSymbol: false,
      })),
    });
    const training = trainingOf(chosen.run);
    const recorded = training && training.steps.at
      ? training.steps.at.map((step, i) => [step, ...["band_low", "band_high", "ratio"].map((name) => number(training.steps[name][i]))])
      : own.map((leaf) => [leaf.step, number(metric(leaf.number, "band_low")?.median), number(metric(leaf.number, "band_high")?.median), 1]);
    const log = (x) => (finite(x) && x > 0 ? Math.log10(x) : null);
    // without a training run's records the coefficients are those of the paper's DPO condition
    const ratio = training?.steps.at ? "d_w/d_l" : "d_w = d_l";
    const banded = recorded.filter((row) => finite(log(row[1])) && finite(log(row[2])));
    draw("c-band", recorded.length < 2 ? none : {
      legend: { data: ["band", ratio] },
      tooltip: { trigger: "axis", valueFormatter: (v) => (Array.isArray(v) && v[1] !== null ? shown(10 ** v[1]) : "") },
      xAxis: stepAxis(),
      yAxis: axis({ type: "value", name: "d_w/d_l", nameGap: 46, scale: true, axisLabel: { color: look().soft, formatter: (v) => shown(Number((10 ** v).toPrecision(2))) } }),
      series: [
        line("least", banded.map((row) => [row[0], log(row[1])]), { stack: "band", stackStrategy: "all", lineStyle: { opacity: 0 }, showSymbol: false, color: "#56b4e9" }),
        line("band", banded.map((row) => [row[0], log(row[2]) - log(row[1])]), { stack: "band", stackStrategy: "all", lineStyle: { opacity: 0 }, showSymbol: false, areaStyle: { opacity: 0.45 }, color: "#56b4e9" }),
        line(ratio, recorded.map((row) => [row[0], log(row[3])]), { color: "#d55e00", symbolSize: 3 }),
      ],
    });
    const points = training?.predictions?.predicted
      ? training.predictions.predicted.map((x, i) => ({ x: number(x), y: number(training.predictions.measured[i]), branch: training.predictions.branch[i], step: training.predictions.at[i] }))
      : [];
    const ends = points.flatMap((p) => [p.x, p.y]).filter(finite);
    const [low, high] = [Math.min(...ends), Math.max(...ends)];
    draw("c-predicted", points.length ? {
      legend: { data: ["chosen", "rejected"] }, tooltip: { formatter: (p) => p.value ? `step ${p.value[2]}<br>predicted ${shown(p.value[0])}<br>measured ${shown(p.value[1])}` : "" },
      xAxis: axis({ type: "value", name: "predicted", scale: true }), yAxis: axis({ type: "value", name: "measured", nameGap: 46, scale: true }),
      series: [
        ...[["chosen", "w", "#0072b2", "circle"], ["rejected", "l", "#d55e00", "triangle"]].map(([name, branch, color, symbol]) => ({
          type: "scatter", name, color, symbol, symbolSize: 4, itemStyle: { opacity: 0.6 },
          data: points.filter((p) => p.branch === branch).map((p) => [p.x, p.y, p.step]),
        })),
        { type: "line", name: "equal", data: [[low, low], [high, high]], symbol: "none", lineStyle: { color: look().soft, type: "dashed", width: 1 }, silent: true },
      ],
    } : "no predictions recorded: train with --predict-every, and give the run's folder to report", "canvas");
  };

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

  const values = (leaf, name) => {
    const { pairs } = data;
    const out = [];
    if (name === "wl_over_min" && measured("wl") !== "wl") {
      pairs.leaf.forEach((of, i) => {
        const least = of === leaf ? Math.min(pairs.adam_ww[i], pairs.adam_ll[i]) : 0;
        if (least > 0) out.push(pairs.adam_wl[i] / least);
      });
    } else if (pairs[name]) for (let i = 0; i < pairs.leaf.length; i++) if (pairs.leaf[i] === leaf) { const x = number(pairs[name][i]); if (finite(x)) out.push(x); }
    return out;
  };
  const quantile = (sorted, share) => {
    const place = share * (sorted.length - 1), low = Math.floor(place);
    return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (place - low);
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
      xAxis: axis({ type: "category", data: all.map((leaf) => (others.length ? named(leaf) : leaf.dataset)), axisLabel: { color: look().soft, interval: 0, overflow: "break", width: 130 } }),
      yAxis: axis({ type: "value", name: "cosine", nameGap: 46, scale: true }),
      series: [{ type: "boxplot", name: "cosine", data: all.map(box), itemStyle: { color: "#56b4e955", borderColor: "#0072b2" } }],
    });
  };

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

  const histogram = (id, x, low, high, name) => {
    if (!x.length) return draw(id, "no values");
    const bins = 40, width = (high - low) / bins || 1;
    const counts = Array(bins).fill(0);
    x.forEach((v) => { counts[Math.min(bins - 1, Math.max(0, Math.floor((v - low) / width)))] += 1; });
    draw(id, {
      tooltip: { formatter: (p) => `${shown(low + p.dataIndex * width)} to ${shown(low + (p.dataIndex + 1) * width)}<br>${p.value[1]} pairs` },
      xAxis: axis({ type: "value", name, min: low, max: high }), yAxis: axis({ type: "value", name: "pairs", nameGap: 46 }),
      series: [{ type: "bar", name, barWidth: "95%", color: "#0072b2", data: counts.map((n, i) => [low + (i + 0.5) * width, n]) }],
    });
  };
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

  // ---- tables
  const TEXT = ["run", "dataset", "id", "regime_dpo", "title"];
  const cells = (tag, texts, names) => texts.map((text, i) => {
    const cell = document.createElement(tag);
    cell.textContent = text;
    if (TEXT.includes(names[i])) cell.className = "text";
    return cell;
  });
  const digest = () => {
    const table = data.tables.digest;
    const names = ["run", "step", "dataset", ...Object.keys(table).filter((name) => name !== "leaf")];
    const head = document.createElement("thead"), body = document.createElement("tbody");
    head.append(document.createElement("tr"));
    head.firstChild.append(...cells("th", names.map((name) => name.replaceAll("_", " ")), names));
    (table.leaf ?? []).forEach((leaf, i) => {
      const row = document.createElement("tr");
      row.append(...cells("td", names.map((name) => shown(name in table ? table[name][i] : data.leaves[leaf][name])), names));
      row.tabIndex = 0;
      row.onclick = () => { Object.assign(chosen, { run: data.leaves[leaf].run, step: data.leaves[leaf].step, dataset: data.leaves[leaf].dataset }); show(); };
      row.onkeydown = (event) => { if (event.key === "Enter") row.onclick(); };
      body.append(row);
    });
    at("digest").replaceChildren(head, body);
  };
  const finding = (leaf) => {
    const found = data.findings.find((one) => one.run === chosen.run && one.dataset === chosen.dataset);
    at("headline").textContent = found?.headline ?? "";
    at("finding").replaceChildren(...(found?.reasons ?? []).map((text) => Object.assign(document.createElement("li"), { textContent: text })));
    const own = stepsOf(chosen.run, chosen.dataset), sizes = of("batch_sizes", leaf);
    const first = sizes.filter((row) => row.objective === sizes[0].objective);
    const caption = (text) => { at("first-caption").textContent = text; };
    const { steps } = trainingOf(chosen.run) ?? {};
    if (alone.includes(chosen.run)) {
      caption(`Log-probability of the pairs of each step of ${chosen.run}, means`);
      const along = (name) => (steps.at ?? []).map((step, i) => [step, number(steps[name][i])]);
      const lines = [["chosen", "logp_chosen", COLOURS[0]], ["rejected", "logp_rejected", COLOURS[3]]];
      draw("c-first", {
        legend: {}, tooltip: { trigger: "axis", valueFormatter: plain }, xAxis: stepAxis(), yAxis: axis({ type: "value", name: "log-probability", nameGap: 46, scale: true }),
        series: lines.map(([name, column, color]) => line(name, along(column), { color, showSymbol: false })),
      });
    } else if (own.length > 1) {
      caption(`Log-probability of chosen and rejected in ${chosen.run}, medians`);
      const along = (name) => own.map((one) => [one.step, number(metric(one.number, name)?.median)]);
      draw("c-first", {
        legend: {}, tooltip: { trigger: "axis", valueFormatter: plain }, xAxis: stepAxis(), yAxis: axis({ type: "value", name: "log-probability", nameGap: 46, scale: true }),
        series: [line("chosen", along("logp_chosen"), { color: COLOURS[0] }), line("rejected", along("logp_rejected"), { color: COLOURS[3], lineStyle: { type: "dashed" }, symbol: "emptyCircle" })],
      });
    } else if (first.length) {
      caption(`Share of pairs whose chosen response falls, by the size of random batches (${first[0].objective})`);
      draw("c-first", {
        tooltip: { trigger: "axis", valueFormatter: plain }, xAxis: axis({ type: "category", name: "batch size", data: first.map((row) => String(row.batch_size)) }),
        yAxis: axis({ type: "value", min: 0, max: 1, name: "share", nameGap: 46 }), series: [line("falls", first.map((row) => number(row.falls_w)), { color: COLOURS[3] })],
      });
    } else {
      caption("Cosine of both gradients");
      histogram("c-first", values(leaf, "cosine"), -1, 1, "cosine");
    }
  };

  // ---- between pairs
  const split = () => {
    const training = trainingOf(chosen.run), predictions = training?.predictions ?? {}, branch = at("split-branch").value;
    const PARTS = ["own", "others", "momentum", "decay"];
    const steps = new Map();
    (predictions.at ?? []).forEach((step, i) => {
      if (predictions.branch[i] !== branch || predictions.split[i] !== "batch" || !predictions.own || predictions.own[i] === null) return;
      const sums = steps.get(step) ?? { n: 0, measured: 0, ...Object.fromEntries(PARTS.map((part) => [part, 0])) };
      [...PARTS, "measured"].forEach((part) => { sums[part] += number(predictions[part][i]); });
      sums.n += 1;
      steps.set(step, sums);
    });
    at("f-split").hidden = !steps.size;
    if (!steps.size) return;
    const order = [...steps.keys()].sort((a, b) => a - b), mean = (part) => order.map((step) => steps.get(step)[part] / steps.get(step).n);
    draw("c-split", {
      legend: {}, tooltip: { trigger: "axis", valueFormatter: plain }, xAxis: axis({ type: "category", name: "step", data: order.map(String) }),
      yAxis: axis({ type: "value", name: "change", nameGap: 46 }),
      series: [...PARTS.map((part, i) => ({ type: "bar", stack: "all", name: part, color: COLOURS[i], data: mean(part) })), { type: "scatter", name: "measured", symbol: "diamond", symbolSize: 9, color: look().text, data: mean("measured") }],
    });
  };
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
      dataZoom: [{ type: "inside", xAxisIndex: 0 }, { type: "inside", yAxisIndex: 0 }],
      visualMap: { min: -most, max: most, text: [most.toFixed(2), `−${most.toFixed(2)}`], orient: "vertical", right: 0, top: "middle", inRange: { color: DIVERGING }, textStyle: { color: look().soft }, precision: 2 },
      series: [{
        type: "heatmap", name: value, progressive: 0, data: cells.flatMap((x, i) => (x === null ? [] : [[i % n, Math.floor(i / n), x / 1000]])),
        // between two categories, a half before the later one
        markLine: { silent: true, symbol: "none", label: { show: false }, lineStyle: { color: look().text, width: 1, type: "solid" }, data: edges.flatMap((place) => [{ xAxis: place - 0.5 }, { yAxis: place - 0.5 }]) },
      }],
    }, "canvas");
    charts["c-heat"].on("click", (p) => p.componentType === "series" && couple(leaf, map.pairs[p.value[1]], map.pairs[p.value[0]]));
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

  // ---- one pair
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

  // ---- where it comes from, and the tables as files
  const origin = () => {
    const runs = data.training.map((run) => ({ title: `training of ${run.run}`, manifest: run.manifest }));
    at("origin").replaceChildren(...[...data.leaves, ...runs].map((of) => {
      const details = document.createElement("details"), summary = document.createElement("summary"), code = document.createElement("pre");
      summary.textContent = of.title;
      code.textContent = JSON.stringify(of.manifest ?? {}, null, 1);
      details.append(summary, code);
      return details;
    }));
  };
  const csv = (table) => {
    const names = Object.keys(table).filter((name) => name !== "leaf"), count = names.length ? table[names[0]].length : 0;
    const quote = (x) => (x === null ? "" : /[",\n\r]/.test(String(x)) ? `"${String(x).replaceAll('"', '""')}"` : String(x));
    // what training recorded is of its own steps, and of no record
    const extra = names.includes("at") ? [] : ["run", "step", "dataset"];
    const line = (i) => [...extra.map((name) => data.leaves[table.leaf[i]][name]), ...names.map((name) => table[name][i])].map(quote).join(",");
    return [[...extra, ...names.map((name) => (name === "at" ? "step" : name))].join(","), ...Array.from({ length: count }, (_, i) => line(i))].join("\n") + "\n";
  };
  const downloads = () => {
    const tables = { pairs: data.pairs, ...data.tables };
    data.training.forEach((run) => {
      for (const kind of ["steps", "predictions"]) tables[`${run.run}-${kind}`] = run[kind];
    });
    at("downloads").replaceChildren(...Object.keys(tables).filter((name) => tables[name].leaf?.length).flatMap((name) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `${name.replaceAll("/", "-")}.csv`;
      button.onclick = () => {
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([csv(tables[name])], { type: "text/csv" }));
        link.download = button.textContent;
        link.click();
        URL.revokeObjectURL(link.href);
      };
      return [button, document.createTextNode(" ")];
    }));
  };

  const show = () => {
    settle();
    const leaf = selected();
    at("selected").textContent = `${of("digest", leaf)[0]?.pairs ?? 0} pairs`;
    finding(leaf);
    dynamics();
    between(leaf);
    objectives(leaf);
    outcomes(leaf);
    sets();
    layers(leaf);
    experts(leaf);
    distributions(leaf);
    bins(leaf);
    filter();
  };
  for (const name of ["run", "step", "dataset"]) at(name).onchange = () => { chosen[name] = JSON.parse(at(name).value); show(); };
  at("metric").value = chosen.metric;
  at("metric").onchange = () => { chosen.metric = at("metric").value; show(); };
  at("metric-choice").hidden = !data.pairs.adam_cosine;
  at("split-branch").onchange = split;
  at("between-objective").onchange = () => { chosen.objective = JSON.parse(at("between-objective").value); batches(selected()); };
  at("heat-value").onchange = at("heat-cut").onchange = () => heat(selected());
  at("couple-form").onsubmit = (event) => { event.preventDefault(); couple(selected(), JSON.parse(at("couple-a").value), JSON.parse(at("couple-b").value)); };
  at("bin-by").onchange = () => { chosen.against = JSON.parse(at("bin-by").value); bins(selected()); };
  at("layer-value").onchange = () => layers(selected());
  if (data.tables.experts.leaf?.length) at("expert-value").onchange = () => experts(selected());
  else at("experts").remove();
  at("theme").onclick = () => {
    const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    show();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  new ResizeObserver(() => Object.values(charts).forEach((chart) => chart.resize())).observe(document.body);
  addEventListener("beforeprint", () => Object.values(charts).forEach((chart) => chart.resize()));

  digest();
  table();
  origin();
  downloads();
  show();
  // a page that is watched loads itself again when the records have more
  const { watched } = document.body.dataset;
  if (watched) setInterval(async () => {
    const stamp = await fetch("stamp").then((answer) => answer.text(), () => watched);
    if (stamp === watched || document.querySelector("dialog[open]")) return;
    sessionStorage.setItem("chosen", JSON.stringify(chosen));
    location.reload();
  }, 2000);
  window.report = { data, charts, csv, open, couple };
})();
