"use strict";
// Step by step: checkpoints that were measured, and what training recorded.

// a column of a run's own steps
const recordedOf = (run, name) => { const { steps } = trainingOf(run); return (steps.at ?? []).map((step, i) => [step, number(steps[name]?.[i])]); };
const dynamics = () => {
  const tracked = runs.filter((run) => stepsOf(run, chosen.dataset).length > 1 || (alone.includes(run) && trainingOf(run).steps.at?.length > 1));
  const none = "one step only: nothing moves";
  const median = (run, name) => {
    if (!alone.includes(run)) return stepsOf(run, chosen.dataset).map((leaf) => [leaf.step, number(metric(leaf.number, name)?.median)]);
    return recordedOf(run, name);
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
  const notAll = (shownOf, all, what) => (shownOf < all ? ` ${shownOf} of ${all} ${what} are shown, evenly.` : "");
  at("steps-note").textContent = training ? notAll(training.steps.at?.length ?? 0, training.steps_in_all, "recorded steps") : "";
  at("predicted-note").textContent = training ? notAll(training.predictions.at?.length ?? 0, training.predictions_in_all, "changes") : "";
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

const split = () => {
  const parts = trainingOf(chosen.run)?.parts ?? {}, branch = at("split-branch").value;
  const PARTS = ["own", "others", "momentum", "decay"];
  // the choice of a response stays where another has nothing to show
  at("f-split").hidden = !parts.at?.length;
  if (!parts.at?.length) return;
  const steps = rows(parts, (i) => parts.branch[i] === branch).sort((a, b) => a.at - b.at), mean = (part) => steps.map((row) => number(row[part]));
  draw("c-split", !steps.length ? "no such changes were recorded" : {
    legend: {}, tooltip: { trigger: "axis", valueFormatter: plain }, xAxis: axis({ type: "category", name: "step", data: steps.map((row) => String(row.at)) }),
    yAxis: axis({ type: "value", name: "change", nameGap: 46 }),
    series: [...PARTS.map((part, i) => ({ type: "bar", stack: "all", name: part, color: COLOURS[i], data: mean(part) })), { type: "scatter", name: "measured", symbol: "diamond", symbolSize: 9, color: look().text, data: mean("measured") }],
  });
};
