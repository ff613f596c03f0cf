// Sorting of tables, finding and sorting of questions. The page reads the same without it.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const down = header.getAttribute("aria-sort") !== "descending";
      for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.value ?? "";
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const difference = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return down ? -difference : difference;
      };
      body.append(...[...body.rows].sort(order));
    });
  });
}
for (const controls of document.querySelectorAll(".controls")) {
  const find = controls.querySelector("[data-find]");
  const show = controls.querySelector("[data-show]");
  const sort = controls.querySelector("[data-sort]");
  const counter = controls.querySelector("[data-count]");
  const list = document.getElementById(find.dataset.find);
  const more = document.querySelector('[data-more="' + list.id + '"]');
  const first = 12; // enough to see what happened; the button brings the rest
  let all = false;
  const update = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const item of list.children) {
      const text = item.textContent.toLowerCase();
      const fits = (!show.value || item.dataset.mark === show.value) && words.every((word) => text.includes(word));
      shown += fits;
      item.hidden = !fits || (!all && shown > first);
    }
    counter.textContent = shown === 1 ? "1 question" : shown + " questions";
    more.hidden = all || shown <= first;
    more.textContent = "Show all " + shown;
  };
  sort.addEventListener("change", () => {
    const sign = sort.value === "down" ? -1 : 1;
    list.append(...[...list.children].sort((a, b) => sign * (a.dataset.change - b.dataset.change)));
    update();
  });
  find.addEventListener("input", update);
  show.addEventListener("change", update);
  more.addEventListener("click", () => { all = true; update(); });
  controls.hidden = false;
  update();
}
