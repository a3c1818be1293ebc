"use strict";

// The data, colours, formats and the layout that all charts share.

const data = JSON.parse(document.getElementById("report-data").textContent);
const networks = data.networks;
const isTouch = matchMedia("(pointer: coarse)").matches;
const config = {
  responsive: true,
  displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
  displaylogo: false,
  modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
};
const axes = {
  macs: "MACs",
  params: "parameters",
  latency_ms: "latency (ms)",
  memory_mib: "peak memory (MiB)",
  top1: `${data.accuracy} (%)`,
};

// What is measured has a unit; all else is a count.
const units = { latency_ms: "ms", memory_mib: "MiB" };

const byId = (id) => document.getElementById(id);
const colour = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
// Plotly reads some HTML in texts.
const escapeText = (text) =>
  String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function makeElement(tag, className, ...content) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...content);
  return element;
}

function formatCount(number) {
  if (number < 1000) return String(number);
  const exponent = Math.floor(Math.log10(Number(number.toPrecision(3))) / 3);
  const digits = (number / 1000 ** exponent).toPrecision(3);
  return digits + " KMGT"[exponent];
}

// Milliseconds or MiB: three digits, large ones as whole numbers.
function formatMeasured(number) {
  return number < 999.5 ? number.toPrecision(3) : Math.round(number).toLocaleString("en");
}

// The least cost that was judged, such that it is enough when it is typed: exact, or rounded up.
function formatLeast(number, unit) {
  if (!unit) return number.toLocaleString("en");
  const step = 10 ** (Math.floor(Math.log10(number)) - 2);
  return String(Number((Math.ceil(number / step) * step).toPrecision(3)));
}

function formatShare(share) {
  if (share > 0 && share < 0.01) return "<1 %";
  if (share > 0.99 && share < 1) return ">99 %";
  return `${Math.round(100 * share)} %`;
}

// "100M" is 100,000,000; NaN where it is no quantity.
function parseQuantity(text) {
  const match = /^\s*([0-9]*\.?[0-9]+)\s*([KMGT]?)\s*$/i.exec(text.replace(/,/g, ""));
  if (!match) return NaN;
  return Number(match[1]) * 1000 ** " KMGT".indexOf(match[2].toUpperCase() || " ");
}

function makeLayout(x, y, more = {}) {
  const axis = (title) => ({
    title: { text: title, standoff: 8 },
    gridcolor: colour("line"),
    linecolor: colour("line"),
    zeroline: false,
    automargin: true,
  });
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("text"), family: "system-ui, sans-serif", size: 13 },
    margin: { l: 8, r: 12, t: 12, b: 8 },
    hoverlabel: {
      align: "left",
      bgcolor: colour("panel"),
      bordercolor: colour("line"),
      font: { color: colour("text") },
    },
    // A finger that drags over a chart scrolls the page.
    dragmode: isTouch ? false : "zoom",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("line"), activecolor: colour("quiet") },
    showlegend: false,
    ...more,
    xaxis: { ...axis(x), ...more.xaxis },
    yaxis: { ...axis(y), ...more.yaxis },
  };
}

function draw(id, traces, layout) {
  return Plotly.react(byId(id), traces, layout, config);
}
