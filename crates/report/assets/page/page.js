"use strict";
// Where the page comes from, its tables as files, and what its controls do.

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
  const [stamp, ...problem] = await fetch("stamp").then((answer) => answer.text(), () => `${watched}\nTanglescope does not answer any more.`).then((text) => text.split("\n"));
  at("watch").textContent = problem.join(" ");
  if (stamp === watched || document.querySelector("dialog[open]")) return;
  sessionStorage.setItem("chosen", JSON.stringify(chosen));
  location.reload();
}, 2000);
window.report = { data, charts, csv, open, couple };
