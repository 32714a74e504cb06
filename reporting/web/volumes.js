"use strict";
// A volume of side x side x side voxels (axes right, anterior, superior), and three views of it.

// In each view, left is on the left, and anterior or superior is up; sagittal: anterior right.
const VIEWS = {
  coronal: {across: 0, up: 2, through: 1, letters: {left: "L", right: "R", top: "S", bottom: "I"}},
  sagittal: {across: 1, up: 2, through: 0, letters: {left: "P", right: "A", top: "S", bottom: "I"}},
  axial: {across: 0, up: 1, through: 2, letters: {left: "L", right: "R", top: "A", bottom: "P"}},
};
const WHEEL_PIXELS = 40;   // of a touchpad, to move by one slice

// The voxels of a packed volume: base64 of raw deflate of differences along the first axis.
// What follows the voxels is padding.
async function unpack(base64, side) {
  const text = atob(base64.trim());
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const voxels = new Uint8Array(await new Response(stream).arrayBuffer(), 0, side ** 3);
  const plane = side * side;
  for (let i = plane; i < voxels.length; i++) voxels[i] += voxels[i - plane];
  return voxels;
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

// Three canvases that show one volume at one position, in one window of intensities.
class VolumeViews {
  // canvases: {coronal, sagittal, axial}; voxelSizes: mm;
  // onMove(position): called when the user chooses another position
  constructor(canvases, name, side, voxelSizes, onMove) {
    this.canvases = canvases;
    this.name = name;
    this.side = side;
    this.extent = voxelSizes.map((size) => size * side);
    this.onMove = onMove;
    this.voxels = null;
    this.position = [0, 1, 2].map(() => Math.floor(side / 2));
    this.window = {black: 0, white: 255};
    this.crosshair = true;
    this.slice = document.createElement("canvas");
    this.slice.width = this.slice.height = side;
    for (const [name, canvas] of Object.entries(canvases)) {
      const view = VIEWS[name];
      canvas.style.aspectRatio = `${this.extent[view.across]} / ${this.extent[view.up]}`;
      this.listen(canvas, view);
    }
    new ResizeObserver(() => this.draw()).observe(canvases.axial);
  }

  show(voxels) {
    this.voxels = voxels;
    this.draw();
  }

  move(axis, steps) {
    const position = [...this.position];
    position[axis] = clamp(position[axis] + steps, 0, this.side - 1);
    this.onMove(position);
  }

  intensity() {
    const [x, y, z] = this.position;
    return this.voxels[(x * this.side + y) * this.side + z];
  }

  listen(canvas, view) {
    const point = (event) => {
      const box = canvas.getBoundingClientRect();
      const index = (share) => clamp(Math.floor(share * this.side), 0, this.side - 1);
      const position = [...this.position];
      position[view.across] = index((event.clientX - box.left) / box.width);
      position[view.up] = index(1 - (event.clientY - box.top) / box.height);
      this.onMove(position);
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      point(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) point(event);
    });
    let rolled = 0;
    canvas.addEventListener("wheel", (event) => {
      if (event.ctrlKey) return;   // zooms the page
      event.preventDefault();
      rolled += event.deltaMode ? event.deltaY * WHEEL_PIXELS : event.deltaY;
      if (Math.abs(rolled) < WHEEL_PIXELS) return;
      this.move(view.through, rolled > 0 ? -1 : 1);
      rolled = 0;
    }, {passive: false});
    const moves = {
      ArrowLeft: [view.across, -1], ArrowRight: [view.across, 1],
      ArrowDown: [view.up, -1], ArrowUp: [view.up, 1],
      PageDown: [view.through, -1], PageUp: [view.through, 1],
    };
    canvas.addEventListener("keydown", (event) => {
      if (!(event.key in moves) || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      this.move(...moves[event.key]);
    });
  }

  draw() {
    if (this.voxels) Object.keys(this.canvases).forEach((name) => this.drawView(name));
  }

  drawView(name) {
    const canvas = this.canvases[name];
    const view = VIEWS[name];
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * scale));
    const context = canvas.getContext("2d");
    this.fillSlice(view);
    context.imageSmoothingQuality = "high";
    context.drawImage(this.slice, 0, 0, canvas.width, canvas.height);
    if (this.crosshair) this.drawCrosshair(context, view, scale);
    this.drawLetters(context, view, scale);
    canvas.setAttribute("aria-label", `${this.name}, ${name} view, slice `
      + `${this.position[view.through] + 1} of ${this.side}`);
  }

  // The view's slice in the canvas this.slice, a pixel per voxel.
  fillSlice(view) {
    const {side, voxels, position} = this;
    const shades = this.shades();
    const strides = [side * side, side, 1];
    const start = position[view.through] * strides[view.through];
    const image = new ImageData(side, side);
    const pixels = new Uint32Array(image.data.buffer);
    for (let row = 0; row < side; row++) {
      let from = start + (side - 1 - row) * strides[view.up];
      for (let column = 0; column < side; column++) {
        pixels[row * side + column] = shades[voxels[from]];
        from += strides[view.across];
      }
    }
    this.slice.getContext("2d").putImageData(image, 0, 0);
  }

  // The gray pixel of each intensity; its channels are alike, so the order of bytes is no matter
  // but for alpha, which is last in memory.
  shades() {
    const {black, white} = this.window;
    const bytes = new Uint8ClampedArray(4 * 256);
    for (let value = 0; value < 256; value++) {
      const shade = Math.round(255 * (value - black) / Math.max(1, white - black));
      bytes.set([shade, shade, shade, 255].map((x) => clamp(x, 0, 255)), 4 * value);
    }
    return new Uint32Array(bytes.buffer);
  }

  drawCrosshair(context, view, scale) {
    const {width, height} = context.canvas;
    const x = (this.position[view.across] + 0.5) / this.side * width;
    const y = (1 - (this.position[view.up] + 0.5) / this.side) * height;
    const gap = 6 * scale;
    context.strokeStyle = "rgba(90, 200, 250, .75)";
    context.lineWidth = scale;
    context.beginPath();
    for (const [x0, y0, x1, y1] of [[0, y, x - gap, y], [x + gap, y, width, y],
                                    [x, 0, x, y - gap], [x, y + gap, x, height]]) {
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
    }
    context.stroke();
  }

  drawLetters(context, view, scale) {
    const {width, height} = context.canvas;
    const margin = 9 * scale;
    const places = {left: [margin, height / 2], right: [width - margin, height / 2],
                    top: [width / 2, margin], bottom: [width / 2, height - margin]};
    context.font = `${12 * scale}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillStyle = "#f2c14e";
    for (const [end, place] of Object.entries(places)) {
      context.fillText(view.letters[end], ...place);
    }
  }
}
