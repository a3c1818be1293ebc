"use strict";

// "Which network up to this cost?", with how sure the answer is and what distinguishes it.

// With fewer networks an average says little.
const fewNetworks = 30;

// The answer to a limit, and how sure it is, as the program computed it: that of the largest limit
// of its list that is within.
function findBest(axis, limit) {
  const answers = data.best[axis];
  const after = answers.limit.findIndex((value) => value > limit);
  const at = (after < 0 ? answers.limit.length : after) - 1;
  const pick = (name) => answers[name][at];
  return {
    best: pick("best"),
    chance: pick("chance"),
    regret: pick("regret"),
    rivals: pick("rivals"),
  };
}

function answerChoice() {
  const answer = byId("answer");
  const view = data.views[0];
  const axis = byId("limit-axis").value;
  const [text, unit] = [byId("limit").value.trim(), units[axis]];
  const amount = unit ? Number(text.replace(/,/g, "").replace(new RegExp(`${unit}$`, "i"), "")) : parseQuantity(text);
  const limit = text === "" ? Infinity : amount;
  if (Number.isNaN(limit)) {
    const example = unit ? `2.5 for 2.5 ${unit}` : "100M or 4.5G";
    answer.replaceChildren(makeElement("p", "warning", `"${text}" is no number. Write e.g. ${example}.`));
    return;
  }
  const costs = valuesOf(view, axis);
  const within = costs.flatMap((cost, index) => (cost !== null && cost <= limit ? [index] : []));
  if (within.length === 0) {
    const least = costs.reduce((a, b) => (b !== null && b < a ? b : a), Infinity);
    const what = `${formatLeast(least, unit)} ${unit ?? axes[axis]}`;
    answer.replaceChildren(makeElement("p", "warning", `No judged network is that small; the least is ${what}.`));
    return;
  }
  answer.replaceChildren(...writeAnswer(view, within, findBest(axis, limit)));
}

function writeAnswer(view, within, { best, chance, regret, rivals }) {
  const count = within.length.toLocaleString("en");
  const sure = makeElement("p", "");
  sure.append(
    makeElement("b", "", `How sure? `),
    `It is truly the most accurate of these ${count} with a chance of ${formatShare(chance)}; `,
    `taking it gives away ${regret.toFixed(1)} points on average against the true best. `,
    chance < 0.5 ? "The rivals below are as good a guess: retrain several." : "",
  );
  const several = makeElement("p", "quiet", "Several at once, chosen for their spread: ");
  several.append(makeElement("code", "", `search select ${data.run}`));
  const show = makeElement("button", "", "show it in the chart");
  show.addEventListener("click", () => {
    byId("view").selectedIndex = 0;
    choose(idOf(view, best));
    byId("front-chart").scrollIntoView({ block: "center" });
  });
  return [
    drawCard(view, best),
    sure,
    ...describeTraits(view, best),
    ...describeRivals(view, best, rivals),
    makeElement("p", "", show),
    makeCommand(idOf(view, best)),
    several,
  ];
}

// For each stage: how the networks with the same mixer there did against the others.
function describeTraits(view, best) {
  const largest = data.views.reduce((a, b) => (b.rows.length > a.rows.length ? b : a));
  const among = view.rows.length >= fewNetworks ? view : largest;
  if (among.rows.length < fewNetworks) return [];
  const list = makeElement("ul", "rivals");
  stagesOf(view.rows[best]).forEach((type, stage) => {
    const kind = type.blocks[0][0];
    const column = networks.stages[stage];
    const has = (row) => networks.types[stage][column[row]]?.blocks[0][0] === kind;
    const [same, others] = [[], []];
    among.rows.forEach((row, index) => (has(row) ? same : others).push(among.top1[index]));
    if (same.length === 0 || others.length === 0) return;
    const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
    const gain = mean(same) - mean(others);
    const share = formatShare(same.length / among.rows.length);
    list.append(
      makeElement(
        "li",
        "",
        makeElement("b", "", `stage ${stage}: ${type.text}. `),
        `${share} of the networks have ${kind.replaceAll("_", " ")} here, and are on average `,
        `${Math.abs(gain).toFixed(1)} points ${gain < 0 ? "worse" : "better"} than the others`,
      ),
    );
  });
  const title = makeElement("b", "", "What distinguishes it?");
  const where = ` Among the ${among.rows.length.toLocaleString("en")} networks at ${among.fidelity}:`;
  return [makeElement("p", "", title, where), list];
}

function describeRivals(view, best, rivals) {
  if (rivals.length === 0) return [];
  const list = makeElement("ul", "rivals");
  for (const [index, share] of rivals) {
    const macs = (i) => networks.macs[view.rows[i]];
    const change = Math.round(100 * (macs(index) / macs(best) - 1));
    const changes = differences(view.rows[index], view.rows[best]);
    list.append(
      makeElement(
        "li",
        "",
        makeElement("b", "", `network ${idOf(view, index)}`),
        ` (${formatShare(share)}): ${view.top1[index].toFixed(1)} %, `,
        change === 0 ? "the same MACs" : `${Math.abs(change)} % ${change < 0 ? "fewer" : "more"} MACs`,
        `. ${changes.join("; ") || "The same mixers."}`,
      ),
    );
  }
  return [makeElement("p", "", makeElement("b", "", "Its rivals"), ", with their chance to be the best:"), list];
}
