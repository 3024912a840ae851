// Small charts on a canvas: lines over steps.
import { sheet } from "./view.js";

// As many decimals as tell the marks of a range apart.
const short = (value, range) => value.toFixed(Math.max(0, Math.min(5, 1 - Math.floor(Math.log10(range)))));

// Lines: name, colour, points [[x, y], ...], and whether each point gets a dot; least and most are the wanted y range.
export function drawLines(canvas, lines, { colour, most: rightmost, low, high }) {
  const { context, width, height } = sheet(canvas);
  context.fillStyle = colour.sheet;
  context.fillRect(0, 0, width, height);
  const points = lines.flatMap((line) => line.points), left = 44, bottom = height - 20, top = 22;
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = colour.soft;
  if (!points.length) { context.fillText("nothing yet", left, height / 2); return; }
  let least = low ?? Math.min(...points.map(([, y]) => y)), most = high ?? Math.max(...points.map(([, y]) => y));
  if (most - least < 1e-9) { least -= 0.5; most += 0.5; }
  const x = (value) => left + value / Math.max(rightmost, 1) * (width - left - 10), y = (value) => bottom - (value - least) / (most - least) * (bottom - top);
  context.strokeStyle = colour.fine;
  context.lineWidth = 1;
  for (const share of [0, 0.5, 1]) {
    const value = least + share * (most - least), at = Math.round(y(value)) + 0.5;
    context.beginPath();
    context.moveTo(left, at);
    context.lineTo(width - 10, at);
    context.stroke();
    context.textAlign = "right";
    context.fillText(short(value, most - least), left - 6, at + 4);
  }
  context.textAlign = "left";
  context.fillText("0", left, height - 5);
  context.textAlign = "right";
  context.fillText(`step ${rightmost}`, width - 10, height - 5);
  let beside = left;
  for (const line of lines) {
    context.strokeStyle = context.fillStyle = line.colour;
    context.lineWidth = line.dots ? 2 : 1.2;
    context.beginPath();
    line.points.forEach(([step, value], n) => { if (n) context.lineTo(x(step), y(value)); else context.moveTo(x(step), y(value)); });
    context.stroke();
    if (line.dots) for (const [step, value] of line.points) { context.beginPath(); context.arc(x(step), y(value), 3, 0, 7); context.fill(); }
    context.textAlign = "left";
    context.fillText(line.name, beside, 13);
    beside += context.measureText(line.name).width + 16;
  }
}
