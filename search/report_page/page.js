"use strict";

const data = JSON.parse(document.getElementById("report-data").textContent);
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
  top1: "top-1 accuracy (%)",
};
// Above this, drawing in SVG gets slow; WebGL is used where the browser has it.
const mostSvgPoints = 1500;
const hasWebgl = Boolean(document.createElement("canvas").getContext("webgl"));

// Plotly reads some HTML in texts.
const escapeText = (text) =>
  String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const byId = (id) => document.getElementById(id);
const colour = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function formatCount(number) {
  if (number < 1000) return String(number);
  const exponent = Math.floor(Math.log10(Number(number.toPrecision(3))) / 3);
  return (number / 1000 ** exponent).toPrecision(3) + " KMGT"[exponent];
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
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("line"), activecolor: colour("quiet") },
    showlegend: false,
    ...more,
    xaxis: { ...axis(x), ...more.xaxis },
    yaxis: { ...axis(y), ...more.yaxis },
  };
}

function draw(id, traces, layout) {
  Plotly.react(byId(id), traces, layout, config);
}

function describePoint(view, index) {
  const lines = [
    `network ${view.ids[index]}`,
    `top-1 ${view.top1[index].toFixed(1)} % ` +
      `(95 %: ${view.low[index].toFixed(1)} to ${view.high[index].toFixed(1)})`,
    `${formatCount(view.macs[index])} MACs, ${formatCount(view.params[index])} parameters`,
  ];
  const latency = view.latency_ms[index];
  if (latency !== null) lines.push(`${latency.toPrecision(3)} ms`);
  view.mixers[index].split(" | ").forEach((mixers, stage) => {
    lines.push(`stage ${stage}: ${mixers}`);
  });
  return lines;
}

// The points that none beats in both of the axes that are shown, along x.
function bestInPlane(xs, ys, yIsUp) {
  const order = xs.map((_, index) => index).filter((i) => xs[i] !== null && ys[i] !== null);
  const sign = yIsUp ? -1 : 1;
  order.sort((a, b) => xs[a] - xs[b] || sign * (ys[a] - ys[b]));
  let best = Infinity;
  return order.filter((index) => {
    if (sign * ys[index] >= best) return false;
    best = sign * ys[index];
    return true;
  });
}

function drawFront() {
  const view = data.views[byId("view").selectedIndex];
  const [x, y] = [byId("x-axis").value, byId("y-axis").value];
  const groups = [
    ["judged", 0, "other", "circle-open", 6],
    ["off the front by noise only", 1, "near", "diamond-open", 8],
    ["on the front", 2, "front", "circle", 11],
  ];
  // One type for all: WebGL is drawn over SVG, and the front belongs on top.
  const type = view.ids.length > mostSvgPoints && hasWebgl ? "scattergl" : "scatter";
  const traces = groups.map(([name, group, shade, symbol, size]) => {
    const members = view.group.flatMap((value, index) => (value === group ? [index] : []));
    const pick = (values) => members.map((index) => values[index]);
    const trace = {
      type,
      mode: group === 2 && members.length <= 30 ? "markers+text" : "markers",
      name: `${name} (${members.length})`,
      x: pick(view[x]),
      y: pick(view[y]),
      customdata: members,
      hovertext: members.map((index) => describePoint(view, index).map(escapeText).join("<br>")),
      hovertemplate: "%{hovertext}<extra></extra>",
      marker: { color: colour(shade), symbol, size, opacity: group < 2 && members.length > 300 ? 0.5 : 1 },
    };
    if (group === 2) {
      trace.text = pick(view.ids).map(String);
      trace.textposition = "top left";
      if (y === "top1") {
        trace.error_y = {
          type: "data",
          symmetric: false,
          array: members.map((index) => view.high[index] - view.top1[index]),
          arrayminus: members.map((index) => view.top1[index] - view.low[index]),
          thickness: 1,
          width: 3,
        };
      }
    }
    return trace;
  });
  if (x !== "top1") {
    const line = bestInPlane(view[x], view[y], y === "top1");
    traces.splice(2, 0, {
      type,
      mode: "lines",
      name: "best in these axes",
      x: line.map((index) => view[x][index]),
      y: line.map((index) => view[y][index]),
      line: { color: colour("front"), width: 1.5, shape: "hv", dash: "dot" },
      hoverinfo: "skip",
    });
  }
  const layout = makeLayout(axes[x], axes[y], {
    showlegend: true,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, traceorder: "reversed" },
    hovermode: "closest",
    xaxis: { tickformat: x === "macs" || x === "params" ? "~s" : "" },
    yaxis: { tickformat: y === "macs" || y === "params" ? "~s" : "" },
  });
  draw("front-chart", traces, layout);
}

function showChosen(event) {
  const index = event.points[0].customdata;
  if (index === undefined) return;
  const view = data.views[byId("view").selectedIndex];
  const lines = describePoint(view, index).map((line) => {
    const paragraph = document.createElement("p");
    paragraph.textContent = line;
    return paragraph;
  });
  byId("chosen").replaceChildren(...lines, makeCommand(view.ids[index]));
}

function makeCommand(id) {
  const row = document.createElement("p");
  const code = document.createElement("code");
  code.textContent = `search retrain ${data.run} --arch ${id}`;
  const button = document.createElement("button");
  button.textContent = "copy";
  row.className = "command";
  row.append(code, button);
  return row;
}

async function copyCommand(button) {
  const code = button.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "copied";
  } catch {
    getSelection().selectAllChildren(code);
    button.textContent = "selected";
  }
}

function drawRetrained() {
  const rows = data.retrained;
  const labels = rows.map((row) => `network ${row.id}`);
  const series = [
    ["searched", "searched, search split", "other", "circle-open"],
    ["final", "retrained, test split", "front", "circle"],
  ];
  const traces = series.map(([key, name, shade, symbol]) => ({
    type: "scatter",
    mode: "markers",
    name,
    y: labels,
    x: rows.map((row) => row[key] && row[key].top1),
    error_x: {
      type: "data",
      symmetric: false,
      array: rows.map((row) => (row[key] ? row[key].high - row[key].top1 : 0)),
      arrayminus: rows.map((row) => (row[key] ? row[key].top1 - row[key].low : 0)),
      thickness: 1,
    },
    marker: { color: colour(shade), symbol, size: 11 },
    hovertemplate: "%{y}: %{x:.1f} %<extra></extra>",
  }));
  const layout = makeLayout(axes.top1, "", {
    showlegend: true,
    height: 160 + 34 * rows.length,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    yaxis: { type: "category", autorange: "reversed" },
  });
  draw("retrained-chart", traces, layout);
}

function drawHypervolume() {
  const shades = ["front", "near", "third", "other"];
  const traces = data.hypervolume.map((curve, index) => ({
    type: "scatter",
    mode: "lines",
    name: escapeText(curve.fidelity),
    x: curve.spent,
    y: curve.volume,
    line: {
      shape: "hv",
      width: 2,
      color: colour(shades[index % shades.length]),
      dash: ["solid", "dash", "dot", "dashdot"][index % 4],
    },
    hovertemplate: `%{y:.4f} at %{x:.3~g} ${escapeText(data.unit)}<extra></extra>`,
  }));
  const layout = makeLayout(`${data.unit} spent`, "hypervolume", {
    showlegend: true,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    xaxis: { rangemode: "tozero" },
  });
  draw("hypervolume-chart", traces, layout);
}

function drawPhases() {
  const amounts = data.phases.map((phase) => phase.amount);
  const trace = {
    type: "bar",
    orientation: "h",
    y: data.phases.map((phase) => escapeText(phase.name)),
    x: amounts,
    text: amounts.map((amount) => amount.toPrecision(3)),
    textposition: "auto",
    marker: { color: colour("front") },
    hovertemplate: `%{y}: %{x:.3~g} ${escapeText(data.unit)}<extra></extra>`,
  };
  const layout = makeLayout(data.unit, "", {
    yaxis: { type: "category", autorange: "reversed", showgrid: false },
  });
  draw("phases-chart", [trace], layout);
}

function drawTrust() {
  const estimate = byId("estimate").value;
  const points = data.trust;
  const names = { supernet: "top-1 with inherited weights (%)", ...axes };
  const trace = {
    type: "scatter",
    mode: "markers",
    x: points[estimate],
    y: points.top1,
    marker: { color: colour("front"), size: 9, opacity: 0.8 },
    hovertext: points.ids.map((id) => `network ${id}`),
    hovertemplate: "%{hovertext}<br>%{x}, %{y:.1f} %<extra></extra>",
  };
  const layout = makeLayout(names[estimate], "top-1 trained alone (%)", {
    xaxis: { tickformat: estimate === "supernet" ? "" : "~s" },
  });
  draw("trust-chart", [trace], layout);
}

function drawMixers() {
  const { kinds, stages, front, all } = data.mixers;
  const map = (values, xaxis, showscale) => ({
    type: "heatmap",
    x: stages,
    y: kinds,
    z: values.map((row) => row.map((cell) => cell.share)),
    text: values.map((row) => row.map((cell) => `${Math.round(100 * cell.share)} %`)),
    customdata: values.map((row) => row.map((cell) => cell.count)),
    texttemplate: "%{text}",
    hovertemplate: "%{y}, %{x}: %{text} of the blocks (%{customdata})<extra></extra>",
    xaxis,
    zmin: 0,
    zmax: 1,
    colorscale: "Cividis",
    showscale,
    xgap: 2,
    ygap: 2,
    colorbar: { tickformat: ".0%", thickness: 12, outlinewidth: 0 },
  });
  const layout = makeLayout("", "", {
    margin: { l: 8, r: 12, t: 36, b: 8 },
    height: 110 + 40 * kinds.length,
    xaxis: { domain: [0, 0.48], showgrid: false, fixedrange: true },
    yaxis: { autorange: "reversed", showgrid: false, fixedrange: true, type: "category" },
    annotations: [
      [0.24, "on the front"],
      [0.76, "all judged"],
    ].map(([x, text]) => ({
      x,
      y: 1,
      xref: "paper",
      yref: "paper",
      yanchor: "bottom",
      text,
      showarrow: false,
    })),
  });
  layout.xaxis2 = { ...layout.xaxis, domain: [0.52, 1] };
  const isWide = innerWidth > 720;
  draw("mixers-chart", [map(front, "x", false), map(all, "x2", isWide)], layout);
}

function drawAll() {
  drawFront();
  if (byId("retrained-chart")) drawRetrained();
  if (byId("hypervolume-chart")) drawHypervolume();
  if (byId("phases-chart")) drawPhases();
  if (byId("trust-chart")) drawTrust();
  if (byId("mixers-chart")) drawMixers();
}

drawAll();
byId("front-chart").on("plotly_click", showChosen);
for (const id of ["view", "x-axis", "y-axis"]) byId(id).addEventListener("change", drawFront);
byId("estimate")?.addEventListener("change", drawTrust);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
document.addEventListener("click", (event) => {
  if (event.target.matches(".command button")) copyCommand(event.target);
});
