"use strict";

// One network: its numbers, and a drawing of its stages.

const kinds = [
  ...new Set(networks.types.flat().flatMap((type) => type.blocks.map(([kind]) => kind))),
].sort();

// A view's values of one axis; costs are stored once for all views.
function valuesOf(view, axis) {
  if (axis === "macs" || axis === "params") return view.rows.map((row) => networks[axis][row]);
  return view[axis];
}

const idOf = (view, index) => networks.ids[view.rows[index]];

function stagesOf(row) {
  return networks.stages
    .map((column, stage) => networks.types[stage][column[row]])
    .filter((type) => type !== undefined);
}

function accuracyText(view, index) {
  const [top1, low, high] = [view.top1, view.low, view.high].map((values) => values[index]);
  return `${top1.toFixed(1)} % (95 %: ${low.toFixed(1)} to ${high.toFixed(1)})`;
}

function costText(view, index) {
  const row = view.rows[index];
  const parts = [
    `${formatCount(networks.macs[row])} MACs`,
    `${formatCount(networks.params[row])} parameters`,
  ];
  for (const [name, unit] of Object.entries(units)) {
    const cost = view[name]?.[index];
    if (cost !== undefined && cost !== null) parts.push(`${formatMeasured(cost)} ${unit}`);
  }
  return parts.join(", ");
}

function standingText(view, index) {
  const chance = `chance that it truly belongs there: ${formatShare(view.sure[index])}`;
  if (view.group[index] === 2) {
    const macs = view.rows.map((row) => networks.macs[row]);
    const isCheapest = macs.every((value) => value >= macs[index]);
    return `On the front; ${chance}${isCheapest ? " (none with fewer MACs was judged)" : ""}.`;
  }
  if (view.group[index] === 1) return `Off the front by no more than noise; ${chance}.`;
  return "Not on the front.";
}

function drawBlock([kind, text, times]) {
  const block = makeElement("span", "block", times > 1 ? `${times} × ${text}` : text);
  block.style.setProperty("--kind", `var(--kind${kinds.indexOf(kind) % 8})`);
  block.title = kind.replaceAll("_", " ");
  return block;
}

// A row for each stage: its blocks, its map and width, and a bar for its share of the MACs.
function drawStages(row) {
  const drawing = makeElement("div", "network");
  stagesOf(row).forEach((type, stage) => {
    const blocks = makeElement("span", "blocks", ...type.blocks.map(drawBlock));
    if (type.mlp !== 4) blocks.append(makeElement("span", "quiet", `MLP ×${type.mlp}`));
    const share = type.macs === null ? 0 : type.macs / networks.macs[row];
    const bar = makeElement("span", "bar");
    bar.style.setProperty("--share", share);
    drawing.append(
      makeElement("span", "quiet", `${stage}`),
      makeElement("span", "quiet map", `${type.size}x${type.size}, ${type.dim}`),
      blocks,
      bar,
      makeElement("span", "quiet share", share ? formatShare(share) : ""),
    );
  });
  return drawing;
}

function drawCard(view, index) {
  const card = makeElement("div", "card");
  card.append(
    makeElement("p", "", makeElement("b", "", `network ${idOf(view, index)}`), " ", accuracyText(view, index)),
    makeElement("p", "", costText(view, index)),
    makeElement("p", "quiet", standingText(view, index)),
    drawStages(view.rows[index]),
  );
  return card;
}

// The stages in which two networks differ, in words.
function differences(row, other) {
  const [own, others] = [stagesOf(row), stagesOf(other)];
  const texts = own.map((type, stage) => {
    const there = others[stage]?.text ?? "none";
    return type.text === there ? null : `stage ${stage}: ${type.text} instead of ${there}`;
  });
  return texts.filter((text) => text !== null);
}

function makeCommand(id) {
  const row = makeElement("p", "command");
  const words = `${data.training[0]}${id}${data.training[1]}`.split(" ");
  // Lines break between words, not inside of "--arch".
  const spans = words.flatMap((word, i) => [i ? " " : "", makeElement("span", "", word)]);
  const code = makeElement("code", "", ...spans);
  row.append(code, makeElement("button", "", "copy"));
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
