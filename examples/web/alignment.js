// When words were spoken: conformer/streaming/alignment.py, which says why. Its numbers come in as `numbers`.

// The stretches [first, last) of words, in feature frames. `levels` are loudness in dB; `emissions` hold, for each word,
// the frames from the first of its first token to behind that of its last one; none begins before `earliest`.
export function alignWords(levels, emissions, earliest, numbers) {
  if (!emissions.length) return [];
  const { REACH, SHORTEST } = numbers;
  const speech = speechOf(levels, numbers);
  while (speech.length < emissions.at(-1)[1]) speech.push(-1);
  const total = [0];
  for (const value of speech) total.push(total.at(-1) + value);
  const valley = (border) =>
    Math.min(speech[Math.min(border, speech.length - 1)], speech[Math.max(border - 1, 0)]);
  let [ends, best] = [[earliest], [0]]; // where the words so far may end, and the best sum if by then
  const steps = emissions.map(([first, last]) => {
    const starts = range(Math.max(first - REACH, earliest), Math.min(first + REACH, speech.length));
    const opened = runningBest(
      starts.map((start) => {
        const before = lastUpTo(ends, start);
        return (before < 0 ? -Infinity : best[before]) - total[start] - valley(start) - stray(start - first, numbers);
      }),
    );
    const later = range(Math.max(last - REACH, starts[0] + SHORTEST), Math.min(last + REACH, speech.length));
    const latest = later.map((end) => Math.min(end - SHORTEST - starts[0], starts.length - 1));
    const closed = runningBest(
      later.map((end, place) => opened.best[latest[place]] + total[end] - stray(last - end, numbers)),
    );
    [ends, best] = [later, closed.best];
    return { starts, chosen: opened.place, later, latest, end: closed.place };
  });
  const spans = [];
  let limit = speech.length;
  for (const { starts, chosen, later, latest, end } of steps.reverse()) {
    const place = end[lastUpTo(later, limit)];
    limit = starts[chosen[latest[place]]];
    spans.unshift([limit, later[place]]);
  }
  return spans;
}

// How much each frame is speech, from -1 to 1.
function speechOf(levels, { SILENCE, QUIET, LOUD, RANGE, PAUSE_SHARE, SLOPE }) {
  const sound = levels.filter((level) => level > SILENCE);
  const sorted = (sound.length ? sound : levels.slice()).sort((a, b) => a - b);
  const loud = percentile(sorted, LOUD);
  const quiet = Math.max(percentile(sorted, QUIET), loud - RANGE);
  return levels.map((level) =>
    Math.min(Math.max((level - quiet - PAUSE_SHARE * (loud - quiet)) / SLOPE, -1), 1),
  );
}

function percentile(sorted, percent) {
  const place = ((sorted.length - 1) * percent) / 100;
  const below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
}

// What it costs that a border lies so many frames inside its emission (late), or outside of it (negative).
function stray(late, { STRAY, EARLY, EARLY_FREE, TIE }) {
  return STRAY * Math.max(late, 0) + EARLY * Math.max(-late - EARLY_FREE, 0) + TIE * Math.abs(late);
}

// The largest value up to each place, and where it is.
function runningBest(values) {
  const best = [];
  const place = [];
  values.forEach((value, index) => {
    const better = !index || value >= best[index - 1];
    best.push(better ? value : best[index - 1]);
    place.push(better ? index : place[index - 1]);
  });
  return { best, place };
}

// The last place of ascending values that is not above `limit`; -1 where there is none.
function lastUpTo(ascending, limit) {
  return ascending.findLastIndex((value) => value <= limit);
}

function range(first, last) {
  return Array.from({ length: Math.max(last - first + 1, 0) }, (_, index) => first + index);
}
