"use strict";

// Draws everything, and connects what can be clicked or changed.

const charts = {
  "retrained-chart": drawRetrained,
  "hypervolume-chart": drawHypervolume,
  "phases-chart": drawPhases,
  "trust-chart": drawTrust,
  "horizon-chart": drawHorizon,
  "mixers-chart": drawMixers,
  "importance-chart": drawImportance,
};

function drawAll() {
  drawFront();
  for (const [id, drawChart] of Object.entries(charts)) if (byId(id)) drawChart();
}

drawAll();
answerChoice();
byId("front-chart").on("plotly_click", chooseClicked);
byId("front-chart").on("plotly_hover", showTip);
byId("front-chart").on("plotly_unhover", hideTip);
byId("front-chart").on("plotly_relayout", placeLabels);
addEventListener("scroll", hideTip, { passive: true });
for (const id of ["view", "x-axis", "y-axis", "show-alone", "show-published"]) {
  byId(id)?.addEventListener("change", drawFront);
}
byId("limit").addEventListener("input", answerChoice);
byId("limit-axis").addEventListener("change", answerChoice);
byId("estimate")?.addEventListener("change", drawTrust);
byId("importance-view")?.addEventListener("change", drawImportance);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
document.addEventListener("click", (event) => {
  if (event.target.matches(".command button")) copyCommand(event.target);
});
document.documentElement.dataset.ready = "yes";
