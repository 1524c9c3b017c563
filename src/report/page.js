// Reads out the values in the charts: by pointer, touch and arrow keys. Without it the page says the same.
"use strict";
(() => {
  const root = document.documentElement;
  const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -Infinity, End: Infinity };

  const reader = (chart) => {
    const plot = chart.querySelector(".plot");
    const frame = plot.firstElementChild;
    const key = [...chart.querySelectorAll(".key [data-values]")];
    const values = key.map((item) => item.dataset.values.split("|"));
    const xs = chart.dataset.x.split("|");
    const at = chart.dataset.at.split(" ").map((stop) => stop / 1000);
    const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
    cursor.setAttribute("class", "cursor hidden");
    cursor.setAttribute("y2", "100%");
    frame.append(cursor);
    let place = null;

    const show = (index) => {
      place = index;
      cursor.classList.toggle("hidden", index === null);
      chart.querySelector(".key .x b").textContent = index === null ? "" : xs[index];
      key.forEach((item, i) => (item.querySelector("b").textContent = index === null ? "" : values[i][index]));
      for (const end of ["x1", "x2"]) cursor.setAttribute(end, `${100 * at[index ?? 0]}%`);
    };
    const nearest = (share) => at.reduce((best, stop, i) => (Math.abs(stop - share) < Math.abs(at[best] - share) ? i : best), 0);
    const self = { sync: chart.dataset.sync, showAt: (share) => show(share === null ? null : nearest(share)) };
    const together = (share) => readers.forEach((other) => (other === self || (self.sync && other.sync === self.sync)) && other.showAt(share));

    plot.onpointermove = plot.onpointerdown = (event) => {
      const box = frame.getBoundingClientRect();
      together((event.clientX - box.left) / box.width);
    };
    // A touched value stays visible.
    plot.onpointerleave = (event) => event.pointerType === "mouse" && together(null);
    plot.onkeydown = (event) => {
      const step = steps[event.key];
      if (step === undefined) return;
      event.preventDefault();
      const last = xs.length - 1;
      const next = place === null ? (step < 0 ? last : 0) : Math.min(last, Math.max(0, place + step));
      together(at[next]);
      // Neighbours may share a position after rounding to thousandths.
      show(next);
      const told = key.flatMap((item, i) => (item.classList.contains("hidden") ? [] : `${item.dataset.name} ${values[i][next]}`));
      const level = chart.querySelector(".key .x").textContent;
      chart.querySelector("[aria-live]").textContent = `${level}: ${told.join(", ")}`;
    };
    chart.querySelectorAll(".chooser input").forEach((input) => {
      input.onchange = () => chart.querySelectorAll(`[data-series="${input.value}"]`).forEach((part) => part.classList.toggle("hidden", !input.checked));
    });
    plot.tabIndex = 0;
    plot.ariaLabel += " Arrow keys read them out.";
    return self;
  };

  // The rule of the decision: of the levels within the limits, the smallest one that is close to the best.
  const limits = (form) => {
    const { levels, tolerance, chosen, ...own } = JSON.parse(form.dataset.figures);
    const choice = (passing) => {
      const best = Math.max(...passing.map((level) => level.value));
      return passing.find((level) => level.value >= (1 - tolerance) * best);
    };
    // A limit is rounded up to what is shown: whole milliseconds or hundredths of a second.
    const shown = (s) => (s < 1 ? Math.ceil(1000 * s) / 1000 : Math.ceil(100 * s) / 100);
    // From slightly below the shortest time to slightly above the last one that changes the choice;
    // the limit in force; and, last, no limit.
    const steps = (name) => {
      const times = levels.map((level) => level[name]).filter((time) => time > 0).sort((a, b) => a - b);
      if (!times.length) return [];
      const changes = (time) => choice(levels.filter((level) => !(level[name] >= time))) !== choice(levels);
      const [low, high] = [times[0], times.findLast(changes) ?? times.at(-1)];
      const even = Array.from({ length: 60 }, (_, i) => shown(0.95 * low * ((1.1 * high) / low) ** (i / 59)));
      return [...even, ...(own[name] === null ? [] : [own[name]])].sort((a, b) => a - b).concat(null);
    };
    const choices = { p95: steps("p95"), ttft: steps("ttft") };
    const written = (s) => (s === null ? "any" : s < 1 ? `${Math.round(1000 * s)} ms` : `${s.toFixed(2)} s`);
    const pick = document.querySelector("#chart-tradeoff .pick");
    const inputs = [...form.querySelectorAll("input")].filter((input) => {
      const limits = choices[input.name];
      input.parentElement.hidden = !limits.length;
      input.max = limits.length - 1;
      input.value = limits.indexOf(own[input.name]);
      return limits.length;
    });
    const show = (level) => {
      pick.classList.toggle("hidden", !level);
      if (level) [["cx", 0], ["cy", 1]].forEach(([name, at]) => pick.setAttribute(name, level.place[at]));
      form.dataset.pick = level ? level.level : "";
      form.querySelector("p").textContent = level ? level.told : "No level meets these limits.";
      for (const input of inputs) {
        const limit = choices[input.name][input.value];
        input.dataset.limit = limit ?? "";
        input.ariaValueText = input.previousElementSibling.textContent = written(limit);
      }
    };
    const choose = () => {
      const keeps = (level) => inputs.every((input) => {
        const limit = choices[input.name][input.value];
        const value = level[input.name];
        return limit === null || (value === null ? input.name === "p95" : value <= limit);
      });
      show(choice(levels.filter(keeps)));
    };
    form.hidden = false;
    form.oninput = choose;
    if (chosen === null) choose();
    else show(levels.find((level) => level.level === chosen));
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
  const readers = [...document.querySelectorAll(".chart")].map(reader);
  document.querySelectorAll(".limits").forEach(limits);
  root.dataset.ready = readers.length;
})();
