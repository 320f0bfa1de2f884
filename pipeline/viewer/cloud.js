"use strict";
/* A point cloud on a plain canvas: drawn point by point into its pixels, the nearest one in front. */

class PointCloud {
  constructor(canvas) {
    this.canvas = canvas;
    this.still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.points = null;
    this.reset();
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.held = [event.clientX, event.clientY, this.yaw, this.pitch];
      this.stop();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.held) return;
      const [x, y, yaw, pitch] = this.held;
      this.look(yaw + (event.clientX - x) / 160, pitch + (event.clientY - y) / 160, this.zoom);
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { this.held = null; });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.look(this.yaw, this.pitch, this.zoom * Math.exp(-event.deltaY / 500));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.onKey(event));
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  reset() {
    this.yaw = 0.2; this.pitch = 0.08; this.zoom = 1; this.held = null; this.turning = !this.still; this.begun = null;
  }

  onKey(event) {
    const turn = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
    const times = { "+": 1.15, "=": 1.15, "-": 1 / 1.15 }[event.key];
    if (event.key === " ") this.turn(!this.turning);
    else if (turn) { this.stop(); this.look(this.yaw + turn[0], this.pitch + turn[1], this.zoom); }
    else if (times) this.look(this.yaw, this.pitch, this.zoom * times);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  look(yaw, pitch, zoom) {
    this.yaw = yaw;
    this.pitch = Math.max(-1.4, Math.min(1.4, pitch));
    this.zoom = Math.max(0.3, Math.min(8, zoom));
    this.draw();
  }

  stop() { this.turn(false); }

  turn(on) {
    this.turning = on;
    this.begun = null;
    if (on) this.tick();
    if (this.onturn) this.onturn(on);
  }

  tick() {
    if (this.ticking) return;
    const step = (now) => {
      this.ticking = this.turning && this.points && this.canvas.offsetParent ? requestAnimationFrame(step) : null;
      if (!this.ticking) return;
      if (this.begun === null) this.begun = now - 1000 * Math.asin(Math.max(-1, Math.min(1, this.yaw / 0.35))) / 0.7;
      this.look(0.35 * Math.sin(0.7 * (now - this.begun) / 1000), this.pitch, this.zoom);
    };
    this.ticking = requestAnimationFrame(step);
  }

  /* points: Float32Array of x, y, z by turns, seen from (0, 0, -1); colors: Uint32Array as ImageData has them. spacing: how far
     neighbours are from each other, in parts of their distance. focal: of the camera, in parts of the picture's width and height. */
  show({ points, colors, spacing, focal }) {
    Object.assign(this, { points, colors, spacing, focal });
    this.draw();
    if (this.turning) this.tick();
  }

  clear() {
    this.points = null;
    this.draw();
  }

  draw() {
    const scale = Math.min(devicePixelRatio || 1, 2);
    const width = Math.round(this.canvas.clientWidth * scale), height = Math.round(this.canvas.clientHeight * scale);
    if (!width || !height) return;
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
      this.image = null;
    }
    const context = this.canvas.getContext("2d");
    if (!this.image) {
      this.image = context.createImageData(width, height);
      this.pixels = new Uint32Array(this.image.data.buffer);
      this.depths = new Float32Array(width * height);
    }
    this.pixels.fill(0);
    if (this.points) this.drawPoints(width, height);
    context.putImageData(this.image, 0, 0);
  }

  drawPoints(width, height) {
    const { points, colors, spacing, pixels, depths } = this;
    const cy = Math.cos(this.yaw), sy = Math.sin(this.yaw), cp = Math.cos(this.pitch), sp = Math.sin(this.pitch);
    const away = 1.15, focal = 1.05 * Math.min(width * this.focal[0], height * this.focal[1]) * this.zoom;
    depths.fill(Infinity);
    for (let i = 0, p = 0; i < colors.length; i++, p += 3) {
      const x = cy * points[p] + sy * points[p + 2], turned = -sy * points[p] + cy * points[p + 2];
      const y = cp * points[p + 1] - sp * turned, z = sp * points[p + 1] + cp * turned + away;
      if (z < 0.05) continue;
      const size = Math.max(1, Math.min(9, Math.ceil(focal * spacing * (points[p + 2] + 1) / z)));
      const left = Math.round(width / 2 + focal * x / z - size / 2), top = Math.round(height / 2 + focal * y / z - size / 2);
      if (left < 0 || top < 0 || left + size > width || top + size > height) continue;
      for (let row = top; row < top + size; row++) {
        for (let at = row * width + left, end = at + size; at < end; at++) {
          if (z < depths[at]) { depths[at] = z; pixels[at] = colors[i]; }
        }
      }
    }
  }
}

/* The points of a label. disparity or depth: label.values, NaN where there is none; deep: how many times as far as the nearest point
   the farthest is, for a label that does not say it; rgb: Uint32Array of the same size. */
function pointsOf(label, space, deep, rgb) {
  const { width, height, values } = label, metric = space.includes("metric"), near = space.includes("disparity");
  const known = values.filter((value) => !Number.isNaN(value)).sort();
  if (known.length < 2) return null;
  const low = known[Math.floor(0.01 * (known.length - 1))], high = known[Math.ceil(0.99 * (known.length - 1))];
  const distance = (value) => {
    if (metric) return near ? 1 / Math.max(value, 1e-3) : value;
    const share = Math.max(-0.02, Math.min(1.2, (value - low) / (high - low || 1)));
    return near ? 1 / Math.max(1 / deep + (1 - 1 / deep) * share, 0.5 / deep) : 1 + (deep - 1) * Math.max(share, 0);
  };
  const z = values.map(distance), focal = 0.9 * Math.max(width, height), step = Math.max(1, Math.round(Math.sqrt(width * height / 90000)));
  const points = [], colors = [];
  for (let row = 0; row < height - step; row += step) {
    for (let column = 0; column < width - step; column += step) {
      const at = row * width + column, here = z[at], right = z[at + step], below = z[at + step * width];
      if (Number.isNaN(here)) continue;
      const edge = Math.max(here / right, right / here, here / below, below / here);
      if (edge > 1.12) continue; /* between two surfaces there is nothing */
      points.push((column - width / 2) / focal * here, (row - height / 2) / focal * here, here);
      colors.push(rgb[at]);
    }
  }
  return centred(points, colors, step / focal, [focal / width, focal / height]);
}

/* About a pivot in the line of sight, as far as the middle of the points, and so large that this is at a distance of 1. */
function centred(points, colors, spacing, focal) {
  const distances = Float32Array.from(colors, (_, i) => points[3 * i + 2]).sort(), pivot = distances[distances.length >> 1] || 1;
  return {
    points: Float32Array.from(points, (value, i) => value / pivot - (i % 3 === 2)),
    colors: Uint32Array.from(colors),
    spacing: 1.5 * spacing,
    focal,
  };
}
