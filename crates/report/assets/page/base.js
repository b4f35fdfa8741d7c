"use strict";
// What the page's data is, what of it is selected, and how a number is shown.

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
const alone = data.training.filter((run) => !run.leaves.length).map((run) => run.run);
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

const trainingOf = (name) => data.training.find((run) => (run.leaves.length ? run.leaves.some((leaf) => data.leaves[leaf].run === name) : run.run === name));

const TEXT = ["run", "dataset", "id", "regime_dpo", "title"];
const cells = (tag, texts, names) => texts.map((text, i) => {
  const cell = document.createElement(tag);
  cell.textContent = text;
  if (TEXT.includes(names[i])) cell.className = "text";
  return cell;
});

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
