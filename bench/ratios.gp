# SPDX-License-Identifier: MIT
# gnuplot -c ratios.gp ratios.dat FORMAT OUTPUT: the ratios us / peer with their spread, left of 1 is faster than the peer.
data = ARG1
stats data using 2 nooutput name "rows"
height = 120 + 22 * rows_records
if (ARG2 eq "svg") {
    set terminal svg size 1000, height font "sans,13" background "white"
} else {
    set terminal pngcairo size 1000, height font "sans,10"
}
set output ARG3
set title "libguard / peer: median of the ratios and their spread; smaller is better"
set logscale x
set xlabel "time (or instructions) of libguard / of the peer"
set xrange [0.005:10]
set yrange [rows_records - 0.3 : -0.7]
set grid xtics
set key bottom right opaque
set lmargin 34
set arrow 1 from 1, graph 0 to 1, graph 1 nohead linewidth 2 linecolor rgb "#888888"
plot data using 2:0:3:4:ytic(1) with xerrorbars pointtype 7 pointsize 0.8 linecolor rgb "#1f5fa8" title "measured", \
     data using ($5 > 0 ? $5 : 1/0):0 with points pointtype 2 pointsize 1.2 linewidth 2 linecolor rgb "#c03020" title "to reach"
