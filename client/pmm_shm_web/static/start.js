// Loads the other scripts after the first paint, in their order. Until then links and forms work without them.
"use strict";

const { scripts, style } = document.currentScript.dataset;

function load() {
  const link = document.createElement("link");
  Object.assign(link, { rel: "stylesheet", href: style });
  const made = scripts.split(" ").map((src) => Object.assign(document.createElement("script"), { src, async: false }));
  document.head.append(link, ...made);
}

// htmx starts only where the document is complete. A hidden page is not painted.
function afterPaint() {
  if (document.hidden) load();
  else requestAnimationFrame(() => setTimeout(load));
}
if (document.readyState === "complete") afterPaint();
else window.addEventListener("load", afterPaint);
