// Reads out what the pictures show: at the pointer, at a touch, and by arrow keys. Without it the page says the same.
"use strict";
(() => {
  const root = document.documentElement;
  const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -Infinity, End: Infinity };

  const reader = (figure) => {
    const plot = figure.querySelector(".plot");
    const frame = plot.firstElementChild;
    const key = [...figure.querySelectorAll(".key [data-values]")];
    const values = key.map((item) => item.dataset.values.split("|"));
    const xs = figure.dataset.x.split("|");
    const at = figure.dataset.at.split(" ").map((stop) => stop / 1000);
    // A share of requests stands upright, and its line lies.
    const flipped = frame.dataset.flipped !== undefined;
    const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
    cursor.setAttribute("class", "cursor hidden");
    frame.append(cursor);
    let place = null;

    const show = (index) => {
      place = index;
      cursor.classList.toggle("hidden", index === null);
      figure.querySelector(".key .x b").textContent = index === null ? "" : xs[index];
      key.forEach((item, i) => (item.querySelector("b").textContent = index === null ? "" : values[i][index]));
      if (index === null) return;
      const share = `${100 * (flipped ? 1 - at[index] : at[index])}%`;
      const ends = flipped ? { x1: "0", x2: "100%", y1: share, y2: share } : { x1: share, x2: share, y1: "0", y2: "100%" };
      for (const name in ends) cursor.setAttribute(name, ends[name]);
    };
    const nearest = (share) => at.reduce((best, stop, i) => (Math.abs(stop - share) < Math.abs(at[best] - share) ? i : best), 0);
    const self = { sync: figure.dataset.sync, showAt: (share) => show(share === null ? null : nearest(share)) };
    const together = (share) => readers.forEach((other) => (other === self || (self.sync && other.sync === self.sync)) && other.showAt(share));

    plot.onpointermove = plot.onpointerdown = (event) => {
      const box = frame.getBoundingClientRect();
      together(flipped ? 1 - (event.clientY - box.top) / box.height : (event.clientX - box.left) / box.width);
    };
    // What a finger has touched stays.
    plot.onpointerleave = (event) => event.pointerType === "mouse" && together(null);
    plot.onkeydown = (event) => {
      const step = steps[event.key];
      if (step === undefined) return;
      event.preventDefault();
      const last = xs.length - 1;
      const next = place === null ? (step < 0 ? last : 0) : Math.min(last, Math.max(0, place + step));
      together(at[next]);
      // Neighbours may stand at the same thousandth.
      show(next);
      const told = key.flatMap((item, i) => (item.classList.contains("hidden") ? [] : `${item.dataset.name} ${values[i][next]}`));
      const level = figure.querySelector(".key .x").textContent;
      figure.querySelector("[aria-live]").textContent = `${level}: ${told.join(", ")}`;
    };
    figure.querySelectorAll(".chooser input").forEach((input) => {
      input.onchange = () => figure.querySelectorAll(`[data-series="${input.value}"]`).forEach((part) => part.classList.toggle("hidden", !input.checked));
    });
    plot.tabIndex = 0;
    plot.ariaLabel += " Arrow keys read them out.";
    return self;
  };

  const toggle = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const paint = (theme) => {
    root.dataset.theme = theme;
    toggle.textContent = theme === "dark" ? "Light" : "Dark";
  };
  const bySystem = () => paint(system.matches ? "dark" : "light");
  root.classList.add("js");
  toggle.hidden = false;
  toggle.onclick = () => paint(root.dataset.theme === "dark" ? "light" : "dark");
  system.addEventListener("change", bySystem);
  if (location.hash === "#dark" || location.hash === "#light") paint(location.hash.slice(1));
  else bySystem();
  const readers = [...document.querySelectorAll("figure")].map(reader);
  root.dataset.ready = readers.length;
})();
