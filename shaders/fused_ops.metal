// Fused ops over rows (softmax, norms, losses, sums): which row a thread works on, and with whom. The kernels
// themselves are generated, since every graph fuses to other ones; these are the parts they are made of, with
// shaders/elementwise.metal (packets in registers) and shaders/reductions.metal (folds over a team).

// A thread's place. Threads beyond the last row take part with it, since lanes exchange values; they store nothing.
template <typename I> struct TlTeam {
    I row;
    uint lane;  // in the team that shares the row
    bool live;  // there is such a row
    bool first; // stores what is one number a row
};

template <typename I> inline TlTeam<I> tl_place(I row, uint lane, I rows) {
    TlTeam<I> team;
    team.live = row < rows;
    team.row = team.live ? row : rows - 1;
    team.lane = lane;
    team.first = team.live && lane == 0;
    return team;
}

// `width` neighbouring threads share a row: a power of two up to 32, or all `threads` of the group.
template <typename I> inline TlTeam<I> tl_team(uint group, uint tid, uint width, uint threads, I rows) {
    return tl_place<I>(I(group) * I(threads / width) + I(tid / width), tid % width, rows);
}

// `lanes` neighbouring threads have neighbouring rows; the threads that stand `lanes` apart share one.
template <typename I> inline TlTeam<I> tl_column(uint group, uint tid, uint lanes, I rows) {
    return tl_place<I>(I(group) * I(lanes) + I(tid % lanes), tid / lanes, rows);
}
