// Draws the charts of #data with uPlot over their still pictures. Without it the page says the same, and holds still.
"use strict";
(() => {
  const root = document.documentElement;
  const charts = JSON.parse(document.getElementById("data").textContent);
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const tone = (name) => css(`--tone-${name}`);

  // ---- figures in words ----

  const short = (value) => {
    const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
    return String(Number(value.toFixed(digits)));
  };
  const units = {
    number: short,
    percent: (value) => `${short(value * 100)} %`,
    seconds: (value) => (value === 0 ? "0" : value < 1 ? `${short(value * 1000)} ms` : `${short(value)} s`),
  };
  const write = (axis, value) => (value == null ? "–" : axis.names[value] ?? units[axis.unit](value));

  // ---- one chart ----

  // Ticks that lie on levels, not closer than `apart` pixels to each other. The first and the last say most.
  const spaced = (u, scale, ticks, apart) => {
    const taken = ticks.slice(0, 1);
    const far = (a, b) => Math.abs(u.valToPos(a, scale) - u.valToPos(b, scale)) >= apart;
    for (const tick of ticks.slice(1).reverse()) if (taken.every((other) => far(other, tick))) taken.push(tick);
    return taken.sort((a, b) => a - b);
  };

  const axisOf = (axis, scale, upright) => {
    const options = {
      scale,
      side: upright ? 3 : 2,
      stroke: () => css("--soft"),
      font: `12px ${css("--sans")}`,
      labelFont: `12px ${css("--sans")}`,
      label: axis.label,
      labelSize: 20,
      size: upright ? 58 : 34,
      gap: 6,
      space: upright ? 32 : axis.unit === "seconds" ? 64 : 52,
      ticks: { stroke: () => css("--line"), size: 5 },
      grid: { stroke: () => css("--line"), width: 1, show: upright },
      values: (u, ticks) => ticks.map((tick) => (tick == null ? "" : write(axis, tick))),
    };
    const ticks = axis.ticks.length ? axis.ticks : axis.names.map((_, at) => at);
    if (ticks.length) options.splits = (u) => spaced(u, scale, ticks.filter((t) => t >= u.scales[scale].min && t <= u.scales[scale].max), 26);
    return options;
  };

  const stacks = (chart) => {
    const below = chart.xs.map(() => 0);
    return chart.series.map((series) =>
      series.style === "stacked" ? series.ys.map((y, at) => (below[at] += y ?? 0)) : series.ys,
    );
  };

  const seriesOf = (chart, series) => {
    const options = {
      label: series.name,
      scale: "y",
      show: series.shown,
      stroke: () => tone(series.tone),
      alpha: series.alpha,
      width: 2,
      spanGaps: true,
      value: (u, _, seriesAt, at) => write(chart.y, at == null ? null : series.ys[at]),
      points: { show: false },
    };
    if (series.style === "points" || series.style === "dashed") options.points = { show: true, size: 6, fill: () => tone(series.tone), width: 0 };
    if (series.style === "dashed") options.dash = [5, 4];
    if (series.style === "steps") Object.assign(options, { paths: uPlot.paths.stepped({ align: 1 }), width: 1.25, fill: () => `${tone(series.tone)}22` });
    if (series.style === "told") options.paths = () => null;
    if (series.style === "stacked") Object.assign(options, { paths: uPlot.paths.bars({ size: [0.64, 72] }), fill: () => tone(series.tone), width: 0 });
    return options;
  };

  // Below the series: shaded parts, bands, single points, fitted curves. Above them: crosses and marks.
  const draw = (chart, drawn) => {
    const at = (u, x, y) => (chart.flipped ? [u.valToPos(y, "y", true), u.valToPos(x, "x", true)] : [u.valToPos(x, "x", true), u.valToPos(y, "y", true)]);
    const clipped = (u, paint) => {
      const { left, top, width, height } = u.bbox;
      u.ctx.save();
      u.ctx.beginPath();
      u.ctx.rect(left, top, width, height);
      u.ctx.clip();
      paint(u.ctx, u.bbox, devicePixelRatio);
      u.ctx.restore();
    };
    const extra = (u, ctx, ratio, { tone: name, shape, points }) => {
      ctx.strokeStyle = ctx.fillStyle = tone(name);
      if (shape === "curve") {
        ctx.globalAlpha = 0.8;
        ctx.lineWidth = 1.5 * ratio;
        ctx.setLineDash([3 * ratio, 4 * ratio]);
        ctx.beginPath();
        for (const [x, y] of points) ctx.lineTo(...at(u, x, y));
        ctx.stroke();
        ctx.setLineDash([]);
      }
      ctx.globalAlpha = shape === "dot" ? 0.35 : 1;
      ctx.lineWidth = 2 * ratio;
      for (const [x, y] of shape === "curve" ? [] : points) {
        const [left, top] = at(u, x, y);
        const size = 5 * ratio;
        ctx.beginPath();
        if (shape === "dot") ctx.arc(left, top, 2 * ratio, 0, 7);
        else for (const side of [-1, 1]) {
          ctx.moveTo(left - size, top - side * size);
          ctx.lineTo(left + size, top + side * size);
        }
        if (shape === "dot") ctx.fill();
        else ctx.stroke();
      }
      ctx.globalAlpha = 1;
      drawn.extras += points.length;
    };
    const band = (u, ctx, { tone: name, band }) => {
      const known = chart.xs.map((x, i) => [x, band[i]]).filter(([, ends]) => ends);
      ctx.fillStyle = tone(name);
      ctx.globalAlpha = 0.16;
      ctx.beginPath();
      for (const [x, ends] of known) ctx.lineTo(...at(u, x, ends[0]));
      for (const [x, ends] of known.reverse()) ctx.lineTo(...at(u, x, ends[1]));
      ctx.fill();
      ctx.globalAlpha = 1;
    };
    const mark = (u, ctx, { left, top, width, height }, ratio, { upright, at: value, label, tone: name }, room) => {
      const position = Math.round(u.valToPos(value, upright ? "x" : "y", true));
      if (upright ? position < left || position > left + width : position < top || position > top + height) return;
      ctx.strokeStyle = ctx.fillStyle = tone(name);
      ctx.lineWidth = ratio;
      ctx.setLineDash([4 * ratio, 3 * ratio]);
      ctx.beginPath();
      if (upright) {
        ctx.moveTo(position, top);
        ctx.lineTo(position, top + height);
      } else {
        ctx.moveTo(left, position);
        ctx.lineTo(left + width, position);
      }
      ctx.stroke();
      ctx.setLineDash([]);
      ctx.textBaseline = "alphabetic";
      ctx.font = `${12 * ratio}px ${css("--sans")}`;
      const wide = ctx.measureText(label).width;
      const swap = upright && position + wide + 8 * ratio > left + width;
      ctx.textAlign = swap ? "right" : "left";
      if (upright && name === "faint") {
        if (position < room.until) return;
        room.until = position + wide + 10 * ratio;
      }
      const place = upright
        ? [position + (swap ? -6 : 6) * ratio, top + (name === "ink" ? 28 : 13) * ratio]
        : [left + 6 * ratio, position - 5 * ratio];
      // A halo keeps it legible over lines.
      ctx.strokeStyle = css("--card");
      ctx.lineWidth = 4 * ratio;
      ctx.strokeText(label, ...place);
      ctx.fillText(label, ...place);
    };
    return {
      drawAxes: (u) => {
        drawn.extras = 0;
        clipped(u, (ctx, { top, height }, ratio) => {
          ctx.fillStyle = css("--wash");
          for (const { from, to } of chart.spans) {
            const left = u.valToPos(from, "x", true);
            ctx.fillRect(left, top, u.valToPos(to, "x", true) - left, height);
          }
          chart.series.filter((series) => series.band && series.shown).forEach((series) => band(u, ctx, series));
          chart.extras.filter((e) => e.shape !== "cross").forEach((e) => extra(u, ctx, ratio, e));
        });
      },
      draw: (u) => {
        clipped(u, (ctx, box, ratio) => {
          chart.extras.filter((e) => e.shape === "cross").forEach((e) => extra(u, ctx, ratio, e));
          const room = { until: -Infinity };
          chart.marks.forEach((m) => mark(u, ctx, box, ratio, m, room));
        });
        const visible = chart.series.filter((series, i) => u.series[i + 1].show && series.style !== "told");
        const points = visible.reduce((sum, series) => sum + series.ys.filter((y) => y != null).length, drawn.extras);
        document.getElementById(`figure-${chart.id}`).dataset.points = points;
      },
    };
  };

  const dashed = (series) => Boolean(series.dash) || series.label.endsWith("(USL)");

  const syncs = {};
  const plot = (chart) => {
    const figure = document.getElementById(`figure-${chart.id}`);
    const holder = figure.querySelector(".plot");
    const said = figure.querySelector("[aria-live]");
    const height = () => (chart.wide ? (holder.clientWidth < 560 ? 270 : 340) : 260);
    const [across, upright] = chart.flipped ? [chart.y, chart.x] : [chart.x, chart.y];
    const scaleOf = (axis, isX) => ({
      time: false,
      distr: axis.log ? 3 : 1,
      ori: isX === chart.flipped ? 1 : 0,
      range: isX && chart.sync ? (u, low, high) => [low, high] : () => axis.range,
    });
    const series = chart.series.map((one) => seriesOf(chart, one));
    const data = [chart.xs, ...stacks(chart)];
    if (chart.series.some((one) => one.style === "stacked")) {
      // The tallest first, so that each is seen above the one it stands on.
      series.reverse();
      data.splice(1, Infinity, ...data.slice(1).reverse());
    }
    const u = new uPlot(
      {
        width: holder.clientWidth,
        height: height(),
        scales: { x: scaleOf(chart.x, true), y: scaleOf(chart.y, false) },
        axes: [axisOf(across, chart.flipped ? "y" : "x", false), axisOf(upright, chart.flipped ? "x" : "y", true)],
        series: [{ label: chart.x.label.split(":")[0], scale: "x", value: (u, x) => write(chart.x, x) }, ...series],
        cursor: {
          y: chart.flipped,
          x: !chart.flipped,
          drag: { x: Boolean(chart.sync), y: false },
          points: { size: 9, width: 2, fill: () => css("--card") },
          sync: chart.sync ? { key: chart.sync, scales: ["x", null] } : undefined,
        },
        legend: { markers: { width: 3, stroke: (u, i) => u.series[i].stroke(), dash: (u, i) => (dashed(u.series[i]) ? "dashed" : "solid") } },
        hooks: Object.fromEntries(Object.entries(draw(chart, { extras: 0 })).map(([name, hook]) => [name, [hook]])),
      },
      data,
      holder,
    );
    if (chart.sync) (syncs[chart.sync] ??= uPlot.sync(chart.sync)).sub(u);

    // Arrow keys go from value to value, and what stands there is said.
    let place = null;
    holder.onkeydown = (event) => {
      const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -Infinity, End: Infinity }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      const last = chart.xs.length - 1;
      place = place === null ? (step < 0 ? last : 0) : Math.min(last, Math.max(0, place + step));
      const position = u.valToPos(chart.xs[place], "x");
      u.setCursor(chart.flipped ? { left: u.bbox.width / 2 / devicePixelRatio, top: position } : { left: position, top: 0 });
      const values = chart.series.filter((one) => one.shown).map((one) => `${one.name} ${write(chart.y, one.ys[place])}`);
      said.textContent = `${chart.x.label.split(":")[0]} ${write(chart.x, chart.xs[place])}: ${values.join(", ")}`;
    };
    if (chart.flipped) choose(chart, figure, u);
    new ResizeObserver(() => holder.clientWidth && holder.clientWidth !== u.width && u.setSize({ width: holder.clientWidth, height: height() })).observe(holder);
    return u;
  };

  // Which of many series are drawn.
  const choose = (chart, figure, u) => {
    figure.classList.add("choice");
    figure.querySelector(".chooser")?.remove();
    const box = document.createElement("fieldset");
    box.className = "chooser";
    box.append(Object.assign(document.createElement("legend"), { textContent: "Levels shown" }));
    chart.series.forEach((series, i) => {
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "checkbox", checked: series.shown });
      input.onchange = () => {
        series.shown = input.checked;
        u.setSeries(i + 1, { show: input.checked });
      };
      label.append(input, Object.assign(document.createElement("span"), { textContent: series.name.replace("level ", "") }));
      box.append(label);
    });
    figure.querySelector(".plot").after(box);
  };

  // ---- the page ----

  const toggle = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  let plots = [];
  const show = (theme) => {
    root.dataset.theme = theme;
    toggle.textContent = theme === "dark" ? "Light" : "Dark";
    plots.forEach((u) => u.destroy());
    plots = charts.map(plot);
  };
  const wished = { "#dark": "dark", "#light": "light" }[location.hash];
  root.classList.add("js");
  toggle.hidden = false;
  toggle.onclick = () => show(root.dataset.theme === "dark" ? "light" : "dark");
  system.addEventListener("change", () => show(system.matches ? "dark" : "light"));
  show(wished ?? (system.matches ? "dark" : "light"));
  root.dataset.ready = plots.length;
})();
