"use strict";
// What was found, first.

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
  const both = (text, along) => {
    caption(text);
    const [chosenLine, rejectedLine] = ["logp_chosen", "logp_rejected"].map(along), showSymbol = chosenLine.length <= 60;
    draw("c-first", {
      legend: {}, tooltip: { trigger: "axis", valueFormatter: plain }, xAxis: stepAxis(), yAxis: axis({ type: "value", name: "log-probability", nameGap: 46, scale: true }),
      series: [line("chosen", chosenLine, { color: COLOURS[0], showSymbol }), line("rejected", rejectedLine, { color: COLOURS[3], showSymbol, lineStyle: { type: "dashed" }, symbol: "emptyCircle" })],
    });
  };
  if (alone.includes(chosen.run)) {
    both(`Log-probability of the pairs of each step of ${chosen.run}, means`, (name) => recordedOf(chosen.run, name));
  } else if (own.length > 1) {
    both(`Log-probability of chosen and rejected in ${chosen.run}, medians`, (name) => own.map((one) => [one.step, number(metric(one.number, name)?.median)]));
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
