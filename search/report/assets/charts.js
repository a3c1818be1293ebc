"use strict";

// The charts below the front: each is drawn from its part of the payload.

function drawRetrained() {
  const rows = data.retrained;
  // A network may have been retrained by several recipes, a row each.
  const isOnce = ({ id }) => rows.filter((row) => row.id === id).length === 1;
  const labels = rows.map((row) => `network ${row.id}${isOnce(row) ? "" : `, ${escapeText(row.recipe)}`}`);
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
  const isCount = estimate === "macs" || estimate === "params";
  const how = data.teacher ? "as assembled" : "with inherited weights";
  const names = { supernet: `${data.measure} ${how} (%)`, ...axes };
  const trace = {
    type: "scatter",
    mode: "markers",
    x: points[estimate],
    y: points.top1,
    marker: { color: colour("front"), size: 9, opacity: 0.8 },
    hovertext: points.ids.map((id) => `network ${id}`),
    hovertemplate: "%{hovertext}<br>%{x:.4~g}, %{y:.1f} %<extra></extra>",
  };
  const truth = data.teacher ? "healed" : "trained alone";
  const layout = makeLayout(names[estimate] ?? estimate, `${data.measure} ${truth} (%)`, {
    xaxis: { tickformat: isCount ? "~s" : "" },
  });
  draw("trust-chart", [trace], layout);
}

// Accuracy over the epochs of whole trainings; dotted lines lead to what is forecast.
function drawHorizon() {
  const shades = ["front", "near", "third", "other"];
  const traces = data.horizon.flatMap((curve, index) => {
    const color = colour(shades[index % shades.length]);
    const name = `network ${curve.id}`;
    const hovertemplate = `${name}, %{x} epochs: %{y:.1f} %<extra></extra>`;
    const base = { type: "scatter", mode: "lines+markers", name, hovertemplate };
    const { epochs, top1, forecast } = curve;
    const measured = { ...base, x: epochs, y: top1, line: { color, width: 1.5 } };
    if (!forecast) return [measured];
    const [end, mean, low, high] = forecast;
    const foretold = {
      ...base,
      x: [epochs.at(-1), end],
      y: [top1.at(-1), mean],
      line: { color, width: 1, dash: "dot" },
      marker: { color, symbol: "circle-open" },
      error_y: {
        type: "data",
        symmetric: false,
        array: [0, high - mean],
        arrayminus: [0, mean - low],
        thickness: 1,
        color,
      },
    };
    return [measured, foretold];
  });
  const lengths = data.horizon.flatMap(({ epochs, forecast }) => [...epochs, forecast?.[0]]);
  const tickvals = [...new Set(lengths.filter((epochs) => epochs))];
  const xaxis = { type: "log", tickvals, ticktext: tickvals.map(String) };
  const layout = makeLayout("epochs of the training", axes.top1, { xaxis });
  draw("horizon-chart", traces, layout);
}

function drawMixers() {
  const { front, all } = data.mixers;
  // Side by side, or on a phone one above the other with short names.
  const isWide = innerWidth > 720;
  const stages = data.mixers.stages.map((name) => (isWide ? name : name.replace("stage ", "")));
  const kinds = data.mixers.kinds.map((kind) => (isWide ? kind : kind.replace(" ", "<br>")));
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
  const titles = ["on the front", "all judged"];
  const layout = makeLayout(isWide ? "" : "stage", "", {
    margin: { l: 8, r: 12, t: 36, b: 8 },
    height: isWide ? 110 + 40 * kinds.length : 170 + 68 * kinds.length,
    xaxis: {
      type: "category",
      showgrid: false,
      fixedrange: true,
      ...(isWide ? { domain: [0, 0.48] } : { anchor: "y2" }),
    },
    yaxis: { autorange: "reversed", showgrid: false, fixedrange: true, type: "category" },
    annotations: titles.map((text, index) => ({
      text,
      x: isWide ? 0.24 + 0.52 * index : 0.5,
      y: isWide ? 1 : 1 - 0.56 * index,
      xref: "paper",
      yref: "paper",
      xanchor: "center",
      yanchor: "bottom",
      showarrow: false,
    })),
  });
  const [left, right] = [map(front, "x", false), map(all, isWide ? "x2" : "x", isWide)];
  if (isWide) {
    layout.xaxis2 = { ...layout.xaxis, domain: [0.52, 1] };
  } else {
    right.yaxis = "y2";
    layout.yaxis2 = { ...layout.yaxis, domain: [0, 0.44] };
    layout.yaxis.domain = [0.56, 1];
  }
  draw("mixers-chart", [left, right], layout);
}

function drawImportance() {
  const study = data.importance[byId("importance-view")?.selectedIndex ?? 0];
  const most = Math.min(study.names.length, 15);
  const [names, mean, low, high] = ["names", "mean", "low", "high"].map((key) =>
    study[key].slice(0, most),
  );
  const trace = {
    type: "bar",
    orientation: "h",
    y: names,
    x: mean,
    marker: { color: colour("front") },
    error_x: {
      type: "data",
      symmetric: false,
      array: high.map((value, index) => value - mean[index]),
      arrayminus: low.map((value, index) => mean[index] - value),
      color: colour("text"),
      thickness: 1.2,
      width: 4,
    },
    hovertemplate: "%{y}: %{x:.3f}<extra></extra>",
  };
  const layout = makeLayout("R² that is lost without it", "", {
    height: 90 + 26 * most,
    xaxis: { zeroline: true, zerolinecolor: colour("quiet") },
    yaxis: { type: "category", autorange: "reversed", showgrid: false },
  });
  draw("importance-chart", [trace], layout);
  byId("importance-note").textContent = describeImportance(study);
}

function describeImportance(study) {
  const share = `R² = ${study.r2.toFixed(2)} on networks that it had not seen`;
  const what = `A forest that learned from ${study.networks.toLocaleString("en")} networks: ${share}. `;
  if (study.r2 < 0.3) return `${what}That is little: do not read much into the order below.`;
  return `${what}Bars show the mean loss, their whiskers the range over five parts of the networks.`;
}
