"use strict";
// Adds to a page that is whole without it: values where one points, and the record of what one clicks. Whatever comes
// from a run folder goes into the page as text.
(() => {
  const tip = document.getElementById("tip");
  const make = (tag, text, kind) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const nearest = (sorted, x) => { // of pairs that begin with a place
    let low = 0, high = sorted.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle][0] < x) low = middle + 1; else high = middle;
    }
    return low > 0 && x - sorted[low - 1][0] < sorted[low][0] - x ? low - 1 : low;
  };
  const showTip = (parts, x, y) => {
    tip.replaceChildren(...parts);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 8))}px`;
    tip.style.top = `${y + 18 + box.height > innerHeight ? Math.max(4, y - box.height - 12) : y + 18}px`;
  };
  const hideTip = () => { tip.hidden = true; };
  const place = (plot, event) => {
    const box = plot.getBoundingClientRect();
    return [1000 * (event.clientX - box.left) / box.width, 1000 * (box.bottom - event.clientY) / box.height, box];
  };

  const candidates = (data, index) => {
    const choice = (data.choices || {})[index];
    if (!choice) return [];
    const [by, chosen, others, more] = choice, names = data.names;
    const table = make("table"), head = table.createTHead().insertRow(), body = table.createTBody();
    for (const text of ["", "operator", "where", "value", ""]) head.append(make("th", text));
    [chosen, ...others].forEach(([operator, site, value, note], at) => {
      const row = body.insertRow();
      for (const text of [at ? "" : "chosen", names[operator] || "as it stands", names[site], value === null ? "not known" : String(value), names[note]])
        row.insertCell().textContent = text;
    });
    const told = more ? `${more} more were weighed; all are in lineage.jsonl.` : "";
    return [make("p", `Chosen by ${names[by]}:`), table, make("p", told, "quiet")];
  };

  const ofRun = (section, data, key) => {
    const panel = section.querySelector(".record");
    const rowOf = index => document.getElementById(`r-${key}-${index}`);
    const cells = row => [...row.cells].map(cell => cell.textContent);
    const heading = row => {
      const line = make("p");
      line.append(row.querySelector(".status").cloneNode(true), make("b", `#${row.cells[0].textContent} ${row.cells[3].firstChild.textContent}`), ` at ${row.querySelector(".site").textContent || "the whole model"}`);
      return line;
    };
    let chosen = null;
    const choose = index => {
      const row = rowOf(index);
      if (!row || !panel) return;
      section.querySelectorAll(".chosen").forEach(one => one.classList.remove("chosen"));
      chosen = index;
      row.classList.add("chosen");
      const site = row.querySelector(".site").textContent;
      section.querySelectorAll(".row[data-module]").forEach(one => one.classList.toggle("chosen", site !== "" && one.dataset.module === site));
      const close = make("button", "✕ close"), told = cells(row), named = section.querySelectorAll(".attempts thead th");
      close.type = "button";
      close.addEventListener("click", () => { panel.hidden = true; section.querySelectorAll(".chosen").forEach(one => one.classList.remove("chosen")); chosen = null; });
      const facts = told.map((text, at) => [named[at].textContent, text]).filter(([, text], at) => text && ![0, 3, 4].includes(at) && at < told.length - 1);
      panel.replaceChildren(close, heading(row), make("p", facts.map(([name, text]) => `${name} ${text}`).join(", "), "quiet"), make("p", told[told.length - 1]), ...candidates(data, index));
      panel.hidden = false;
    };
    const marks = (data.marks || []).map((mark, at) => [...mark, at]).sort((a, b) => a[0] - b[0]);
    const cursors = [...section.querySelectorAll(".cursor")];
    const at = x => cursors.forEach(cursor => { cursor.hidden = x === null; if (x !== null) cursor.style.left = `${x / 10}%`; });
    const close = (x, box) => { // the attempts at the place that is nearest, if it is near
      if (!marks.length) return [];
      const found = marks[nearest(marks, x)];
      return Math.abs(found[0] - x) * box.width / 1000 <= 7 ? marks.filter(mark => mark[0] === found[0]) : [];
    };
    section.querySelectorAll(".chart").forEach(figure => {
      const plot = figure.querySelector(".plot"), lines = (data.charts || [])[figure.dataset.chart] || [];
      const tell = (x, box, clientX, clientY) => {
        const parts = [], near = close(x, box);
        if (data.epochs && data.epochs.length) parts.push(make("p", `epoch ${data.epochs[nearest(data.epochs, x)][1]}`, "quiet"));
        for (const [label, points] of lines) if (points.length) parts.push(make("p", `${label}  ${points[nearest(points, x)][1]}`));
        for (const [, index] of near.slice(0, 4)) {
          const row = rowOf(index);
          if (row) parts.push(heading(row), make("p", row.querySelector(".why").textContent.slice(0, 160), "quiet"));
          const choice = near.length === 1 && (data.choices || {})[index];
          if (choice && choice[2].length) parts.push(make("p", "not chosen: " + choice[2].slice(0, 3).map(([operator, site, value]) => `${data.names[operator]} ${data.names[site]} ${value === null ? "?" : value}`).join("; "), "quiet"));
        }
        if (near.length > 4) parts.push(make("p", `and ${near.length - 4} more attempts`, "quiet"));
        at(x);
        showTip(parts, clientX, clientY);
      };
      plot.addEventListener("pointermove", event => { const [x, , box] = place(plot, event); tell(x, box, event.clientX, event.clientY); });
      plot.addEventListener("pointerleave", () => { at(null); hideTip(); });
      plot.addEventListener("click", event => {
        const [x, , box] = place(plot, event), near = close(x, box);
        if (near.length) choose((near.find(([, index]) => rowOf(index)?.querySelector(".status.applied")) || near[0])[1]);
      });
      plot.addEventListener("keydown", event => {
        const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!step || !marks.length) return;
        event.preventDefault();
        const now = marks.findIndex(mark => mark[1] === chosen), next = marks[now < 0 ? (step > 0 ? 0 : marks.length - 1) : Math.max(0, Math.min(marks.length - 1, now + step))];
        choose(next[1]);
        at(next[0]);
      });
      plot.addEventListener("blur", () => at(null));
    });
    section.querySelector(".attempts")?.addEventListener("click", event => {
      const row = event.target.closest("tbody tr");
      if (row && !getSelection().toString()) { choose(Number(row.id.split("-").pop())); panel.scrollIntoView({ block: "nearest" }); }
    });
  };

  const ofSearch = (section, data) => {
    const panel = section.querySelector(".record");
    section.querySelectorAll(".points").forEach(figure => {
      const plot = figure.querySelector(".plot"), spot = figure.querySelector(".spot"), family = figure.querySelector(".family");
      const points = data.pictures[figure.dataset.picture], byId = new Map(points.map(point => [point[2], point]));
      const closest = event => {
        const [x, y, box] = place(plot, event);
        let best = null, least = 24 ** 2;
        for (const point of points) {
          const far = ((point[0] - x) * box.width / 1000) ** 2 + ((point[1] - y) * box.height / 1000) ** 2;
          if (far < least) { least = far; best = point; }
        }
        return best;
      };
      const told = ([, , id, edits, metrics, parents]) => [make("b", `individual ${id}`), make("p", metrics), make("p", edits + (parents.length ? `, of ${parents.join(" and ")}` : ""), "quiet")];
      plot.addEventListener("pointermove", event => {
        const point = closest(event);
        spot.hidden = !point;
        if (!point) return hideTip();
        spot.style.left = `${point[0] / 10}%`;
        spot.style.top = `${100 - point[1] / 10}%`;
        showTip(told(point), event.clientX, event.clientY);
      });
      plot.addEventListener("pointerleave", () => { spot.hidden = true; hideTip(); });
      plot.addEventListener("click", event => {
        const point = closest(event);
        if (!point) return;
        const line = [], seen = new Set();
        for (let one = point; one && !seen.has(one[2]); one = byId.get(one[5][0])) { seen.add(one[2]); line.push(one); }
        section.querySelectorAll(".points").forEach(other => {
          const here = new Map(data.pictures[other.dataset.picture].map(each => [each[2], each]));
          const path = line.map(each => here.get(each[2])).filter(Boolean).map(([x, y]) => `${x} ${1000 - y}`).join("L");
          other.querySelector(".family").setAttribute("d", path ? `M${path}` : "");
        });
        const list = make("ol");
        for (const one of line.reverse()) list.append(make("li", `${one[2]}: ${one[3]}; ${one[4]}`));
        panel.replaceChildren(make("b", `From the first to individual ${point[2]}`), list);
        panel.hidden = false;
      });
    });
  };

  document.querySelectorAll(".subject").forEach(section => {
    const data = JSON.parse(section.querySelector("script.data").textContent);
    if (data.pictures) ofSearch(section, data); else ofRun(section, data, section.dataset.subject);
  });
  const open = id => { const part = id && document.getElementById(id); if (part instanceof HTMLDetailsElement) part.open = true; };
  addEventListener("hashchange", () => open(location.hash.slice(1)));
  open(location.hash.slice(1));
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => { part.open = true; }));
})();
