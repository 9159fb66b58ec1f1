#!/usr/bin/env bash
# The first hour of a user with checkpoints of three codebases, by README and docs alone: bash tests/first_hour.sh FOLDER
# gpc, its extras and openpi-client are those of the python on the PATH. Ends at the first command that fails.
# FOLDER/steps keeps each command that runs with `run`, its output and its seconds.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1/steps"
cd "$1"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
bring="python $repository/tests/first_hour.py"
step=100
say() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; step=$((step + 1)); printf '%s' "$*" > "steps/$step.title"; }
keep() { # BEGIN END OUTPUT COMMAND...
    step=$((step + 1))
    printf '%s' $(((${2/./} - ${1/./}) / 1000)) > "steps/$step.milliseconds"
    cp "$3" "steps/$step.output"
    printf '%s\0' "${@:4}" > "steps/$step.command"
}
run() {
    local begin=$EPOCHREALTIME
    "$@" 2>&1 | tee output.txt
    keep "$begin" "$EPOCHREALTIME" output.txt "$@"
}
need() { for file in "$@"; do [ -s "$file" ] || { echo "no $file"; exit 1; }; done; }

say "LeRobot's own trainer: two steps, an evaluation, a checkpoint"
$bring lerobot-data data/pusht
run lerobot-train --dataset.repo_id=mine/pusht --dataset.root=data/pusht --output_dir=outputs/train/pusht_mine --policy.type=diffusion \
    --policy.push_to_hub=false --policy.device=cpu '--policy.down_dims=[16,32]' --policy.diffusion_step_embed_dim=16 \
    --policy.n_groups=4 --policy.num_inference_steps=5 --policy.n_action_steps=6 \
    '--policy.normalization_mapping={"STATE":"MIN_MAX","ENV":"MIN_MAX","ACTION":"MIN_MAX"}' \
    --batch_size=8 --num_workers=0 --steps=2 --save_freq=2 --eval_freq=2 --eval.n_episodes=1 --eval.batch_size=1 \
    --env.type=pusht --env.obs_type=environment_state_agent_pos --env.episode_length=8 --wandb.enable=false
lerobot=lerobot:outputs/train/pusht_mine

say "robomimic's own trainer: two epochs of two steps, a rollout and a checkpoint after each"
python "$repository/scripts/collect.py" --task lift --episodes 2 --workers 1 --out data > collect.txt
$bring train-robomimic data/lift.hdf5 exp > robomimic.txt 2>&1
robomimic=robomimic:$(ls exp/lift_diffusion/*/models/model_epoch_1_lift_success_*.pth)

say "Diffusion Policy's own trainer, which PyPI does not have: two of its files"
mkdir -p data/outputs
cp -r "$repository"/tests/data/diffusion-policy-trainer/2026.11.28 data/outputs
unet=$(ls data/outputs/*/*_train_diffusion_unet_*/checkpoints/epoch=*.ckpt)
transformer=$(ls data/outputs/*/*_train_diffusion_transformer_*/checkpoints/epoch=*.ckpt)

say "listed"
gpc doctor
run gpc policies
run gpc policies "$lerobot" "$robomimic" "diffusion_policy:$unet"

say "evaluated, each alone, by its own sampler"
run gpc evaluate "policies=[$lerobot]" env=pusht sampler=native episodes=2 env.max_steps=24 run_dir=runs/lerobot-alone
run gpc evaluate "policies=[diffusion_policy:$transformer]" env=pusht sampler=native episodes=2 env.max_steps=8 run_dir=runs/diffusion-alone
run gpc evaluate "policies=[$robomimic]" sampler=native episodes=1 env.max_steps=8 run_dir=runs/robomimic-alone
need runs/{lerobot,diffusion,robomimic}-alone/{summary.json,report.html,episodes.mp4}

say "the same with lerobot-eval and robomimic's run_trained_agent"
run lerobot-eval --policy.path=outputs/train/pusht_mine/checkpoints/last/pretrained_model --env.type=pusht \
    --env.obs_type=environment_state_agent_pos --env.episode_length=24 --eval.n_episodes=2 --eval.batch_size=2 \
    --eval.use_async_envs=false --seed=200000 --policy.device=cpu --output_dir=eval
$bring run-trained-agent --agent "${robomimic#robomimic:}" --n_rollouts 1 --horizon 8 --seed 200000 > rollouts.txt 2>&1
$bring same-counts rollouts.txt

say "predicted from a LeRobotDataset"
run gpc diagnose "policies=[pusht-flow,$lerobot]" env.n_action_steps=6 demonstrations=data/pusht run_dir=runs/predicted
need runs/predicted/errors.png

# NAME POLICIES KEYS...: two policies from the diagnosis to the report; what only a robot needs is in $robot
pair() {
    local name=$1 both=policies=[$2] port=$((8100 + RANDOM % 800))
    shift 2
    say "$name: diagnosed, composed, searched"
    run gpc diagnose "$both" "$@" run_dir="runs/$name-diagnosis"
    run gpc evaluate "$both" 'weights=[0.5,0.5]' "$@" episodes=2 run_dir="runs/$name-mixture"
    run gpc search "$both" "$@" search=grid search.step=0.5 search.episodes=2 report.episodes=2 video=0 run_dir="runs/$name-search"
    need "runs/$name-diagnosis/diagnosis.json" "runs/$name-mixture/report.html" "runs/$name-search/curve.png"

    say "$name: served"
    local begin=$EPOCHREALTIME ready command=(gpc serve "$both" 'weights=[0.5,0.5]' "$names" port="$port")
    "${command[@]}" > "serve-$name.txt" 2>&1 &
    server=$!
    until grep -q "ws://127.0.0.1:$port" "serve-$name.txt"; do
        kill -0 $server || { cat "serve-$name.txt"; exit 1; }
        sleep 1
    done
    ready=$EPOCHREALTIME
    $bring client "$port"
    kill -TERM $server
    wait $server || [ $? -eq 143 ]
    keep "$begin" "$ready" "serve-$name.txt" "${command[@]}"

    say "$name: deployed on the simulated robot"
    run gpc deploy robot=simulated "$both" 'weights=[0.5,0.5]' "$names" "${robot[@]}" mode=live seconds=2 run_dir="runs/$name-deployed"
    need "runs/$name-deployed/manifest.json"
}
trap 'kill ${server:-} 2> /dev/null || true' EXIT

names='rename_map={observation.state: agent_pos, observation.environment_state: keypoints}'
robot=(fps=10 safety.actions=absolute stitch.n_action_steps=6)
pair lerobot "pusht-flow,$lerobot" env.n_action_steps=6 env.max_steps=24
names='rename_map={}'
robot=(fps=10 safety.actions=absolute)
pair diffusion "diffusion_policy:$unet,diffusion_policy:$transformer" env=pusht env.max_steps=24
robot=(sampler.steps=3 robot.settings.env=lift fps=20 'safety.actions=[relative,relative,relative,relative,relative,relative,absolute]')
pair robomimic "$robomimic,lift-flow" env=lift env.max_steps=8 sampler.steps=3

say "reported, compared, replayed"
run gpc compare "policies=[$robomimic,lift-flow]" env=lift episodes=2 env.max_steps=8 video=0 run_dir=runs/robomimic-compared
run gpc report runs/*-alone runs/*-mixture runs/*-search
run gpc replay runs/diffusion-mixture --episode 1 --trust
need study.html
say "done"
