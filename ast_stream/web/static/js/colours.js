// Colours of pictures: a ramp for levels, and one colour for each class.

const RAMP = [
  [0, 0, 4], [27, 12, 65], [74, 12, 107], [120, 28, 109], [165, 44, 96],
  [207, 68, 70], [237, 105, 37], [251, 155, 6], [247, 209, 61], [252, 255, 164],
];

// 256 colours as 0xAABBGGRR, as ImageData has them on little-endian machines
export const RAMP_256 = Uint32Array.from({ length: 256 }, (_, level) => {
  const at = (level / 255) * (RAMP.length - 1);
  const from = RAMP[Math.floor(at)];
  const to = RAMP[Math.ceil(at)];
  const part = at - Math.floor(at);
  const [red, green, blue] = from.map((value, i) => Math.round(value + (to[i] - value) * part));
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
});

const OF_CLASSES = ["#4cc9f0", "#80ed99", "#ffd166", "#ff8fab", "#c8b6ff", "#f4a261", "#90e0ef", "#d9ed92"];

// the same colour for a class on every page: of its name, not of its place in a list
export function colourOfClass(slug) {
  let hash = 0;
  for (const letter of slug) hash = (hash * 31 + letter.codePointAt(0)) % 9973;
  return OF_CLASSES[hash % OF_CLASSES.length];
}
