"use strict";
// How a chart is drawn, in both themes and for a screen reader.

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
