// A use of every template of shaders/fused_ops.metal.

struct Args {
    long many;
    int rows;
};

kernel void teams(device int* out [[buffer(0)]], constant Args& args [[buffer(1)]],
                  uint3 group [[threadgroup_position_in_grid]], uint tid [[thread_index_in_threadgroup]]) {
    const TlTeam<int> team = tl_team<int>(group.x, tid, 8, 256, args.rows);
    if (team.first) out[team.row] = int(team.lane);
}

kernel void columns(device int* out [[buffer(0)]], constant Args& args [[buffer(1)]],
                    uint3 group [[threadgroup_position_in_grid]], uint tid [[thread_index_in_threadgroup]]) {
    const TlTeam<long> team = tl_column<long>(group.x, tid, 32, args.many);
    if (team.live) out[team.row] = int(team.lane);
}
