"use strict";
// The viewers of the report: two sets of volumes side by side, each in three linked views.

class Side {
  // set: {name, title, voxel_mm, affines, ids} of the viewer's description
  constructor(set, side, viewer) {
    this.set = set;
    this.side = side;
    this.viewer = viewer;
    this.unpacked = new Map();   // index -> promise of voxels
    const template = viewer.root.querySelector("template");
    const root = template.content.cloneNode(true).firstElementChild;
    this.root = root;
    root.dataset.set = set.name;
    root.querySelector("h3").textContent = set.title;
    root.querySelector(".sizes").textContent = set.voxel_mm.join(" × ");
    const [right, anterior] = set.voxel_mm;   // widths of the views in each column
    root.querySelector(".views").style.gridTemplateColumns =
      `minmax(0, ${right}fr) minmax(0, ${anterior}fr)`;
    this.select = root.querySelector("select");
    this.select.append(...set.ids.map((id, index) => new Option(id, index)));
    this.select.addEventListener("change", () => viewer.choose(this, Number(this.select.value)));
    root.querySelector(".previous").addEventListener("click", () => this.step(-1));
    root.querySelector(".next").addEventListener("click", () => this.step(1));
    root.addEventListener("keydown", (event) => {
      if (event.key === ",") this.step(-1);
      if (event.key === ".") this.step(1);
    });
    const canvases = {};
    root.querySelectorAll("canvas").forEach((canvas) => { canvases[canvas.dataset.view] = canvas; });
    this.views = new VolumeViews(canvases, set.title, side, set.voxel_mm,
                                 (position) => viewer.moveTo(this, position));
  }

  step(by) {
    const count = this.set.ids.length;
    this.viewer.choose(this, (Number(this.select.value) + by + count) % count);
  }

  async show(index) {
    this.select.value = index;
    if (!this.unpacked.has(index)) {
      const packed = document.getElementById(`volume-${this.set.name}-${index}`).textContent;
      this.unpacked.set(index, unpack(packed, this.side));
    }
    const voxels = await this.unpacked.get(index);
    if (Number(this.select.value) !== index) return;   // another one was chosen meanwhile
    this.views.show(voxels);
    this.describe();
  }

  describe() {
    const {position, voxels} = this.views;
    const write = (name, text) => { this.root.querySelector(`.${name}`).textContent = text; };
    write("id", this.set.ids[this.select.value]);
    write("voxel", position.join(", "));
    const {affines} = this.set;
    const world = affines && affines[this.select.value].map((row) => row[0] * position[0] + row[1] * position[1]
                                       + row[2] * position[2] + row[3]);
    write("world", world ? world.map((x) => x.toFixed(1)).join(", ") : "not known");
    if (voxels) write("intensity", (this.views.intensity() / 255).toFixed(3));
  }
}

class Viewer {
  // description: {side, paired, sets}; volumes of a paired viewer belong together
  constructor(root, description) {
    this.root = root;
    this.paired = description.paired;
    this.control = (name) => root.querySelector(`.controls .${name}`);
    this.sides = description.sets.map((set) => new Side(set, description.side, this));
    root.querySelector(".sides").append(...this.sides.map((side) => side.root));
    this.control("linked").addEventListener("change", () => {
      if (this.control("linked").checked) this.moveTo(this.sides[0], this.sides[0].views.position);
    });
    for (const name of ["crosshair", "black", "white"]) {
      this.control(name).addEventListener("input", () => this.redraw());
    }
    this.control("reset").addEventListener("click", () => this.reset());
    this.sides.forEach((side) => side.show(0));
  }

  choose(from, index) {
    (this.paired ? this.sides : [from]).forEach((side) => side.show(index));
  }

  moveTo(from, position) {
    const moved = this.control("linked").checked ? this.sides : [from];
    for (const side of moved) {
      side.views.position = [...position];
      side.views.draw();
      side.describe();
    }
  }

  redraw() {
    const share = (name) => 255 / 100 * Number(this.control(name).value);
    for (const {views} of this.sides) {
      views.window = {black: share("black"), white: share("white")};
      views.crosshair = this.control("crosshair").checked;
      views.draw();
    }
  }

  reset() {
    this.control("black").value = 0;
    this.control("white").value = 100;
    const middle = Math.floor(this.sides[0].side / 2);
    for (const side of this.sides) {
      side.views.position = [middle, middle, middle];
      side.describe();
    }
    this.redraw();
  }
}

document.querySelectorAll("section.viewer").forEach((root) => {
  const description = document.getElementById(`${root.dataset.name}-description`).textContent;
  new Viewer(root, JSON.parse(description));
});
