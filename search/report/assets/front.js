"use strict";

// The picture of the front: its groups, labels that do not overlap, hovering and clicking.

// Above this, drawing in SVG gets slow; WebGL is used where the browser has it.
const mostSvgPoints = 1500;
const mostLabels = 60;
const hasWebgl = Boolean(document.createElement("canvas").getContext("webgl"));
const groups = [
  { name: "judged", group: 0, shade: "other", symbol: "circle-open", size: 6 },
  { name: "off the front by noise only", group: 1, shade: "near", symbol: "diamond-open", size: 8 },
  { name: "on the front", group: 2, shade: "front", symbol: "circle", size: 11 },
];
// The network that was clicked, by its id: it stays when the view changes.
let chosenId = null;

const currentView = () => data.views[byId("view").selectedIndex];

function indexOfId(view, id) {
  return view.rows.findIndex((row) => networks.ids[row] === id);
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

function groupTrace(view, { name, group, shade, symbol, size }, { type, xs, ys, y }) {
  const members = view.group.flatMap((value, index) => (value === group ? [index] : []));
  const pick = (values) => members.map((index) => values[index]);
  const trace = {
    type,
    mode: group === 2 ? "markers+text" : "markers",
    name: `${name} (${members.length.toLocaleString("en")})`,
    x: pick(xs),
    y: pick(ys),
    customdata: members,
    // Hovering shows our own card.
    hoverinfo: "none",
    marker: {
      color: colour(shade),
      symbol,
      size: members.length > 5000 ? size - 2 : size,
      opacity: group === 2 || members.length <= 300 ? 1 : members.length > 5000 ? 0.25 : 0.5,
    },
  };
  if (group === 2 && y === "top1") {
    trace.error_y = {
      type: "data",
      symmetric: false,
      array: members.map((index) => view.high[index] - view.top1[index]),
      arrayminus: members.map((index) => view.top1[index] - view.low[index]),
      thickness: 1,
      width: members.length > 40 ? 0 : 3,
    };
  }
  return trace;
}

// Of the networks with one mixer in all stages, those that no other of them beats: what a person
// would draw.
function aloneTrace(view, { type, xs, ys }) {
  const members = view.single;
  return {
    type,
    mode: "markers",
    name: `one kind of mixer everywhere, the best for their MACs (${members.length})`,
    x: members.map((index) => xs[index]),
    y: members.map((index) => ys[index]),
    customdata: members,
    hoverinfo: "none",
    marker: { color: colour("third"), symbol: "square-open", size: 15, line: { width: 2 } },
  };
}

// Those of the same scale that are not far outside of what was judged.
function publishedTrace({ type, x, y, xs, ys }) {
  const isNear = (axis, values) => {
    if (axis === "top1") return () => true;
    const known = values.filter((value) => value !== null);
    const [least, most] = known.reduce(
      ([low, high], value) => [Math.min(low, value), Math.max(high, value)],
      [Infinity, -Infinity],
    );
    return (network) => network[axis] > 0.7 * least && network[axis] < 1.4 * most;
  };
  const [fitsX, fitsY] = [isNear(x, xs), isNear(y, ys)];
  const same = data.published.networks.filter((network) => network.same_scale);
  const shown = same.filter((network) => fitsX(network) && fitsY(network));
  return {
    type,
    mode: "markers",
    name: `published, full recipes on ImageNet-1k (${shown.length} of ${same.length} fit)`,
    x: shown.map((network) => network[x]),
    y: shown.map((network) => network[y]),
    text: shown.map((n) => `${n.name}: ${n.top1} % (${n.source})`),
    hovertemplate: "%{text}<extra></extra>",
    marker: { color: colour("text"), symbol: "star-open", size: 11 },
  };
}

// The network that a graft began with; where it was not judged at this fidelity, as it is.
function teacherTrace(view, { type, x, y, xs, ys }) {
  const index = indexOfId(view, data.teacher.id);
  const plain = index < 0 ? data.teacher.as_it_is : null;
  const point = index < 0 ? [plain?.[x] ?? null, plain?.[y] ?? null] : [xs[index], ys[index]];
  const isKnown = point.every((value) => value !== null);
  return {
    type,
    mode: "markers",
    name: plain ? "the teacher, as it is" : "the teacher",
    showlegend: isKnown,
    x: isKnown ? [point[0]] : [],
    y: isKnown ? [point[1]] : [],
    // One that has a card can be clicked.
    ...(index < 0 ? { hoverinfo: "name" } : { customdata: [index], hoverinfo: "none" }),
    marker: { color: colour("near"), symbol: "star", size: 16 },
  };
}

function chosenTrace(view, { type, xs, ys }) {
  const index = chosenId === null ? -1 : indexOfId(view, chosenId);
  return {
    type,
    mode: "markers",
    name: "chosen",
    showlegend: index >= 0,
    x: index < 0 ? [] : [xs[index]],
    y: index < 0 ? [] : [ys[index]],
    hoverinfo: "skip",
    marker: { color: colour("text"), symbol: "circle-open", size: 20, line: { width: 2 } },
  };
}

// Costs that span more than a decade would stand in a heap at the left: their logarithms do not.
function scaleOf(axis, values) {
  if (axis === "top1") return {};
  const known = values.filter((value) => value !== null);
  const [least, most] = known.reduce(
    ([low, high], value) => [Math.min(low, value), Math.max(high, value)],
    [Infinity, -Infinity],
  );
  const tickformat = units[axis] ? "" : "~s";
  // With so few ticks they are at 1, 2 and 5: those at 8 and 9 would run into each other.
  return least > 0 && most > 10 * least ? { type: "log", nticks: 5, tickformat } : { tickformat };
}

function drawFront() {
  const view = currentView();
  const [x, y] = [byId("x-axis").value, byId("y-axis").value];
  const [xs, ys] = [valuesOf(view, x), valuesOf(view, y)];
  if (!xs || !ys) return drawMissing(view);
  // One type for all: WebGL is drawn over SVG, and the front belongs on top.
  const type = view.rows.length > mostSvgPoints && hasWebgl ? "scattergl" : "scatter";
  const plane = { type, x, y, xs, ys };
  const traces = groups.map((group) => groupTrace(view, group, plane));
  if (x !== "top1") traces.splice(2, 0, bestTrace(plane));
  if (byId("show-alone").checked) traces.push(aloneTrace(view, plane));
  if (byId("show-published")?.checked && !units[x] && !units[y]) {
    traces.push(publishedTrace(plane));
  }
  if (data.teacher) traces.push(teacherTrace(view, plane));
  traces.push(chosenTrace(view, plane));
  const layout = makeLayout(axes[x], axes[y], {
    showlegend: true,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, traceorder: "reversed" },
    hovermode: "closest",
    // Zooming lasts until the axes change.
    uirevision: `${x} ${y} ${view.fidelity}`,
    xaxis: scaleOf(x, xs),
    yaxis: scaleOf(y, ys),
  });
  draw("front-chart", traces, layout).then(placeLabels);
}

function drawMissing(view) {
  const text = `Nothing was measured on this axis at ${escapeText(view.fidelity)}.`;
  const layout = makeLayout("", "", {
    annotations: [{ text, x: 0.5, y: 0.5, xref: "paper", yref: "paper", showarrow: false }],
  });
  draw("front-chart", [], layout);
}

function bestTrace({ type, xs, ys, y }) {
  const line = bestInPlane(xs, ys, y === "top1");
  return {
    type,
    mode: "lines",
    name: "best in these axes",
    x: line.map((index) => xs[index]),
    y: line.map((index) => ys[index]),
    line: { color: colour("front"), width: 1.5, shape: "hv", dash: "dot" },
    hoverinfo: "skip",
  };
}

// Writes ids beside the members of the front where there is room; zooming in makes room.
function placeLabels() {
  const chart = byId("front-chart");
  const number = chart.data.findIndex((trace) => trace.name.startsWith("on the front"));
  if (number < 0) return;
  const { xaxis, yaxis } = chart._fullLayout;
  const trace = chart.data[number];
  const view = currentView();
  const spots = trace.x.map((x, i) => [xaxis.d2p(x), yaxis.d2p(trace.y[i])]);
  const bars = (trace.error_y?.array ?? []).map((above, i) => {
    const [x] = spots[i];
    const ends = [trace.y[i] + above, trace.y[i] - trace.error_y.arrayminus[i]];
    return [x - 2, yaxis.d2p(ends[0]), x + 2, yaxis.d2p(ends[1])];
  });
  const taken = [...spots.map(([x, y]) => [x - 6, y - 6, x + 6, y + 6]), ...bars];
  const texts = trace.x.map(() => "");
  const positions = trace.x.map(() => "top center");
  const isFree = (box) =>
    box[0] >= 0 &&
    box[2] <= xaxis._length &&
    box[1] >= 0 &&
    !taken.some((b) => box[0] < b[2] && b[0] < box[2] && box[1] < b[3] && b[1] < box[3]);
  const order = trace.x.map((_, i) => i);
  order.sort((a, b) => view.top1[trace.customdata[b]] - view.top1[trace.customdata[a]]);
  let written = 0;
  for (const i of order) {
    if (written >= mostLabels) break;
    const text = String(idOf(view, trace.customdata[i]));
    const width = 8 * text.length + 2;
    const [x, y] = spots[i];
    const places = {
      "top left": [x - width - 6, y - 22, x - 6, y - 6],
      "top right": [x + 6, y - 22, x + width + 6, y - 6],
      "bottom right": [x + 6, y + 6, x + width + 6, y + 22],
      "bottom left": [x - width - 6, y + 6, x - 6, y + 22],
    };
    const place = Object.keys(places).find((name) => isFree(places[name]));
    if (!place) continue;
    taken.push(places[place]);
    [texts[i], positions[i]] = [text, place];
    written += 1;
  }
  Plotly.restyle(chart, { text: [texts], textposition: [positions] }, [number]);
}

function showTip(event) {
  const index = event.points[0].customdata;
  if (index === undefined || isTouch) return;
  const tip = byId("tip");
  tip.replaceChildren(drawCard(currentView(), index));
  tip.hidden = false;
  const { clientX, clientY } = event.event;
  const left = clientX + 18 + tip.offsetWidth > innerWidth ? clientX - 18 - tip.offsetWidth : clientX + 18;
  const top = Math.min(clientY + 12, innerHeight - tip.offsetHeight - 8);
  tip.style.left = `${Math.max(left, 8)}px`;
  tip.style.top = `${Math.max(top, 8)}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}

function choose(id) {
  chosenId = id;
  const view = currentView();
  const index = indexOfId(view, id);
  if (index >= 0) byId("chosen").replaceChildren(drawCard(view, index), makeCommand(id));
  drawFront();
}

function chooseClicked(event) {
  const index = event.points[0].customdata;
  if (index !== undefined) choose(idOf(currentView(), index));
}
