"use strict";
// The page of a reader study: a case at a time, rated by keys, answers kept in the browser.

const element = (name) => document.getElementById(`study-${name}`);

class Study {
  // description: {study, side, cases, ratings, voxel_mm, columns}
  constructor(description) {
    this.about = description;
    this.current = 0;
    this.unpacked = new Map();   // case -> promise of voxels; the last few
    this.since = performance.now();
    this.store = `mosaicdit-reader-study-${description.study}`;
    this.answers = this.load();
    this.makeViews();
    this.makeButtons();
    element("reader").value = this.answers.reader;
    element("reader").addEventListener("input", () => {
      this.answers.reader = element("reader").value;
      this.keep();
    });
    element("back").addEventListener("click", () => this.go(this.current - 1));
    element("forward").addEventListener("click", () => this.go(this.current + 1));
    element("save").addEventListener("click", () => this.save());
    for (const name of ["crosshair", "black", "white"]) {
      element(name).addEventListener("input", () => this.redraw());
    }
    document.addEventListener("keydown", (event) => this.onKey(event));
    const first = description.cases.findIndex((name) => !(name in this.answers.ratings));
    this.go(Math.max(first, 0));
  }

  makeViews() {
    const {side, voxel_mm: sizes} = this.about;
    const canvases = {};
    document.querySelectorAll("canvas").forEach((canvas) => {
      canvases[canvas.dataset.view] = canvas;
    });
    document.querySelector(".views").style.gridTemplateColumns =
      `minmax(0, ${sizes[0]}fr) minmax(0, ${sizes[1]}fr)`;
    this.views = new VolumeViews(canvases, "case", side, sizes, (position) => {
      this.views.position = position;
      this.views.draw();
      this.describe();
    });
  }

  makeButtons() {
    this.buttons = this.about.ratings.map((label, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `${index + 1}: ${label}`;
      button.addEventListener("click", () => this.rate(index + 1));
      return button;
    });
    element("rating").append(...this.buttons);
  }

  load() {
    const fresh = {reader: "", ratings: {}, seconds: {}};
    try {
      return {...fresh, ...JSON.parse(localStorage.getItem(this.store) || "{}")};
    } catch {
      return fresh;
    }
  }

  keep() {
    try {
      localStorage.setItem(this.store, JSON.stringify(this.answers));
    } catch {
      element("storage").textContent = "This browser keeps no answers: save them before you close "
        + "the page.";
    }
  }

  async go(index) {
    const {cases} = this.about;
    if (index < 0 || index >= cases.length) return;
    this.current = index;
    this.since = performance.now();
    this.write();
    const voxels = await this.voxelsOf(index);
    if (this.current !== index) return;   // another case was chosen meanwhile
    const middle = Math.floor(this.about.side / 2);
    this.views.name = cases[index];
    this.views.position = [middle, middle, middle];
    this.views.show(voxels);
    this.describe();
    if (index + 1 < cases.length) this.voxelsOf(index + 1);
  }

  voxelsOf(index) {
    if (!this.unpacked.has(index)) {
      for (const other of this.unpacked.keys()) {
        if (Math.abs(other - index) > 2) this.unpacked.delete(other);
      }
      const packed = document.getElementById(this.about.cases[index]).textContent;
      this.unpacked.set(index, unpack(packed, this.about.side));
    }
    return this.unpacked.get(index);
  }

  rate(rating) {
    const name = this.about.cases[this.current];
    const spent = (performance.now() - this.since) / 1000;
    this.answers.ratings[name] = rating;
    this.answers.seconds[name] = (this.answers.seconds[name] || 0) + spent;
    this.since = performance.now();
    this.keep();
    this.write();
    this.go(this.current + 1);
  }

  onKey(event) {
    if (event.target === element("reader") || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.repeat) return;   // a key that is held rates one case
    const rating = Number(event.key);
    if (event.key !== " " && rating >= 1 && rating <= this.buttons.length) this.rate(rating);
    if (event.key === "b" || event.key === "B") this.go(this.current - 1);
    if (event.key === "f" || event.key === "F") this.go(this.current + 1);
  }

  // Which case this is, how it was rated, and how many are.
  write() {
    const {cases} = this.about;
    const rating = this.answers.ratings[cases[this.current]];
    const rated = Object.keys(this.answers.ratings).length;
    element("case").textContent = `case ${this.current + 1} of ${cases.length}`;
    element("progress").textContent = `${rated} of ${cases.length} rated`
      + (rated === cases.length ? ": save the answers and send the file" : "");
    this.buttons.forEach((button, index) => {
      button.setAttribute("aria-pressed", rating === index + 1);
    });
  }

  describe() {
    element("position").textContent = `voxel ${this.views.position.join(", ")} of `
      + `${this.about.side}, from left, posterior, inferior`;
  }

  redraw() {
    const share = (name) => 255 / 100 * Number(element(name).value);
    this.views.window = {black: share("black"), white: share("white")};
    this.views.crosshair = element("crosshair").checked;
    this.views.draw();
  }

  // The answers as a table; a row per case, without a rating where there is none.
  table() {
    const {study, cases, columns} = this.about;
    const {reader, ratings, seconds} = this.answers;
    const rows = cases.map((name) => [study, reader.trim(), name, ratings[name] || "",
                                      name in seconds ? seconds[name].toFixed(1) : ""]);
    return [columns, ...rows].map((row) => row.map(cellOf).join(",") + "\n").join("");
  }

  save() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([this.table()], {type: "text/csv"}));
    const words = this.answers.reader.match(/[\p{L}\p{N}]+/gu) || ["reader"];
    link.download = `answers-${this.about.study}-${words.join("-")}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  }
}

// A cell of a CSV file, which no spreadsheet takes for a formula.
function cellOf(value) {
  const text = String(value);
  const harmless = /^[=+\-@]/.test(text) ? `'${text}` : text;
  return /[",\n]/.test(harmless) ? `"${harmless.replaceAll('"', '""')}"` : harmless;
}

const study = new Study(JSON.parse(element("description").textContent));
