/* LayerNorm, RMSNorm, softmax from tables and a linear map in _Float16: what the emulator says half precision does,
 * written once more for a compiler. The compiler must round every operation: -fexcess-precision=16 where it has no
 * instructions for halves, -ffp-contract=off where it has fused ones.
 *
 * From standard input: int32 operation, rows, width, columns; float32 eps; float32 x [rows, width] and parameters
 * [parameters of the operation]. To standard output: float32 [rows, width or columns].
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef _Float16 half;

enum operation { LAYER_NORM, LAYER_NORM_DEFINITION, RMS_NORM, SOFTMAX, LINEAR };
enum { BLOCK = 16, WIDEST = 1024 };

static const float LARGEST = 65504, LIMIT = 65504.0f / 4, SMALLEST_NORMAL = 0x1p-14f, SMALLEST = 0x1p-24f;

static half larger(half a, half b) { return a > b ? a : b; }
static half smaller(half a, half b) { return a < b ? a : b; }
static half magnitude(half a) { return a < 0 ? -a : a; }
static half inverse_root(half a) { return (half)(1.0f / sqrtf((float)a)); }

/* An exact product with a power of two that half precision may not hold: an exponent is added. */
static half shifted(half a, float power) { return (half)((float)a * power); }

static float power_of_two_below(float x) {
  int exponent;
  frexpf(x, &exponent);
  return ldexpf(1.0f, exponent - 1);
}

static float power_of_two_above(float x) {
  float below = power_of_two_below(x);
  return below == x ? below : 2 * below;
}

/* Sixteen addends by a tree, their sums one after another. */
static half tree(half *x, int count) {
  while (count > 1) {
    int kept = (count + 1) / 2;
    for (int i = 0; i < count - kept; i++) x[i] = x[i] + x[kept + i];
    count = kept;
  }
  return x[0];
}

static half sum(const half *x, int count) {
  half total = 0, block[BLOCK];
  for (int start = 0; start < count; start += BLOCK) {
    for (int i = 0; i < BLOCK; i++) block[i] = start + i < count ? x[start + i] : (half)-0.0f;
    half part = tree(block, count < BLOCK ? count : BLOCK);
    total = start ? total + part : part;
  }
  return total;
}

static half over_width(half x, int width) {
  int exponent = 0;
  while (width >> (exponent + 1)) exponent++;
  half quotient = x / (half)((float)width / (float)(1 << exponent));
  return quotient * (half)ldexpf(1.0f, -exponent);
}

static half largest_of(const half *x, int width) {
  half largest = x[0];
  for (int i = 1; i < width; i++) largest = larger(largest, x[i]);
  return largest;
}

static half largest_magnitude(const half *x, int width) {
  half largest = 0;
  for (int i = 0; i < width; i++) largest = larger(largest, magnitude(x[i]));
  return largest;
}

static void centre(half *x, int width, int safely) {
  half mean = over_width(sum(x, width), width);
  if (safely) {
    half lowest = x[0];
    for (int i = 1; i < width; i++) lowest = smaller(lowest, x[i]);
    mean = smaller(larger(mean, lowest), largest_of(x, width));
  }
  for (int i = 0; i < width; i++) x[i] = x[i] - mean;
  if (!safely) return;
  half rest = over_width(sum(x, width), width);
  for (int i = 0; i < width; i++) x[i] = x[i] - rest;
}

static half mean_square(const half *x, int width) {
  half squares[WIDEST];
  for (int i = 0; i < width; i++) squares[i] = x[i] * x[i];
  return over_width(sum(squares, width), width);
}

static void by_definition(half *x, int width, float eps) {
  centre(x, width, 0);
  half inverse = inverse_root(mean_square(x, width) + (half)eps);
  for (int i = 0; i < width; i++) x[i] = x[i] * inverse;
}

/* The geometric pre-normaliser with safe statistics. */
static void stabilised(half *x, int width, float eps, int centred) {
  half deviations[WIDEST] = {0}, y[WIDEST] = {0};
  double floor_exact = exp2(ceil(log2(sqrt(width * (double)eps / LIMIT))));
  float largest = fmaxf((float)largest_magnitude(x, width), (float)floor_exact);
  float shift = power_of_two_below((float)(LARGEST / (2.0 * width)) / largest);
  for (int i = 0; i < width; i++) x[i] = shifted(x[i], shift);
  if (centred) centre(x, width, 1);

  half floor = (half)(shift * (float)floor_exact);
  for (int i = 0; i < width; i++) deviations[i] = magnitude(x[i]);
  half total = sum(deviations, width), top = largest_magnitude(x, width);
  half s = (half)sqrtf((float)total) * (half)sqrtf((float)top);
  s = s * (half)(float)(1 / sqrt(LIMIT));
  s = larger(larger(s, floor), (half)SMALLEST_NORMAL);
  float above = power_of_two_above((float)s);
  half h = (half)1 / shifted(s, 1 / above), ratio = shifted(floor, 1 / above);

  for (int i = 0; i < width; i++) x[i] = shifted(x[i], 1 / above);
  for (int i = 0; i < width; i++) y[i] = x[i] * h;
  half variance = mean_square(y, width) / (h * h);
  half term = ratio * (half)(float)(eps / (floor_exact * floor_exact));
  variance = variance + ratio * term;
  half inverse = inverse_root(larger(variance, (half)SMALLEST));
  for (int i = 0; i < width; i++) x[i] = x[i] * inverse;
}

static void scale_and_bias(half *x, int width, const half *parameters) {
  for (int i = 0; i < width; i++) {
    half scaled = x[i] * parameters[i];
    x[i] = scaled + parameters[width + i];
  }
}

/* A function at low, low + step, ..., linear between: exp for |x| <= ln(2) / 2 and a little more, 1/x from 1 to 2. */
static half interpolated(double (*function)(double), half x, float low, float step, int entries) {
  half high = (half)(low + step * (float)(entries - 1));
  half position = smaller(larger(x, (half)low), high) / (half)step;
  int first = (int)(low / step), floor = (int)position;
  if ((half)floor > position) floor--;
  if (floor > first + entries - 2) floor = first + entries - 2;
  half left = (half)(float)function(floor * (double)step), right = (half)(float)function((floor + 1) * (double)step);
  half rest = position - (half)floor, rise = right - left;
  rise = rest * rise;
  return left + rise;
}

static double reciprocal(double x) { return 1 / x; }

static half exponential(half x, int headroom) {
  const float step = 0x1p-7f;
  const int steps = 45; /* ceil(ln(2) / 2 / step + 1/2) */
  half clipped = smaller(larger(x, (half)-87), (half)88);
  half turns = clipped * (half)1.4426950408889634f;
  int n = (int)nearbyintf((float)turns);
  half high = (half)n * (half)0.6875f, low = (half)n * (half)(float)(0.6931471805599453 - 0.6875);
  half rest = clipped - high;
  rest = rest - low;
  half power = (half)ldexpf(1.0f, n + headroom);
  half value = interpolated(exp, rest, -steps * step, step, 2 * steps + 1) * power;
  return x < (half)-87 ? (half)0 : value;
}

/* Rescaled by its maximum only where that lies outside a window. */
static void softmax(half *x, int width) {
  half largest = largest_of(x, width);
  float window = fminf(3.9375f, (float)log(LARGEST / 4.0 / width));
  int rescaled = largest < 0 || largest > (half)window;
  int headroom = rescaled ? (int)floor(log2(LARGEST / 4.0 / width)) : 0;
  for (int i = 0; i < width; i++) x[i] = exponential(x[i] - (rescaled ? largest : (half)0), headroom);

  half total = sum(x, width);
  if (total == 0) total = 1;
  float power = power_of_two_below((float)total);
  half inverse = interpolated(reciprocal, shifted(total, 1 / power), 1, 0x1p-7f, 129), scale = (half)(1 / power);
  for (int i = 0; i < width; i++) {
    x[i] = x[i] * inverse;
    x[i] = x[i] * scale;
  }
}

/* parameters: a matrix [width, columns] and a bias [columns]. */
static void linear(const half *x, int width, int columns, const half *parameters, half *y) {
  half products[WIDEST];
  for (int j = 0; j < columns; j++) {
    for (int i = 0; i < width; i++) products[i] = x[i] * parameters[i * columns + j];
    y[j] = sum(products, width) + parameters[width * columns + j];
  }
}

static half *read_halves(int count) {
  half *values = malloc((count + 1) * sizeof(half));
  for (int i = 0; i < count; i++) {
    float value;
    if (fread(&value, sizeof value, 1, stdin) != 1) exit(2);
    values[i] = (half)value;
  }
  return values;
}

int main(void) {
  int32_t header[4];
  float eps;
  if (fread(header, sizeof header, 1, stdin) != 1 || fread(&eps, sizeof eps, 1, stdin) != 1) return 2;
  int operation = header[0], rows = header[1], width = header[2], columns = header[3];
  if (width > WIDEST) return 2;
  int count = operation == LINEAR ? (width + 1) * columns : operation == SOFTMAX ? 0 : 2 * width;
  half *x = read_halves(rows * width), *parameters = read_halves(count), *y = malloc(columns * sizeof(half) + 1);
  int results = operation == LINEAR ? columns : width;
  for (int row = 0; row < rows; row++) {
    half *values = x + row * width;
    if (operation == LAYER_NORM_DEFINITION) by_definition(values, width, eps);
    if (operation == LAYER_NORM || operation == RMS_NORM) stabilised(values, width, eps, operation == LAYER_NORM);
    if (operation <= RMS_NORM) scale_and_bias(values, width, parameters);
    if (operation == SOFTMAX) softmax(values, width);
    if (operation == LINEAR) linear(values, width, columns, parameters, y), values = y;
    for (int i = 0; i < results; i++) {
      float value = (float)values[i];
      fwrite(&value, sizeof value, 1, stdout);
    }
  }
  return 0;
}
