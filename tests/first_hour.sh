#!/usr/bin/env bash
# The first hour of a user with checkpoints of three codebases, by README and docs alone: bash tests/first_hour.sh FOLDER
# gpc, its extras and openpi-client are those of the python on the PATH. Ends at the first command that fails.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
cd "$1"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
bring="python $repository/tests/first_hour.py"
say() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }
need() { for file in "$@"; do [ -s "$file" ] || { echo "no $file"; exit 1; }; done; }

say "LeRobot's own trainer: two steps, an evaluation, a checkpoint"
$bring lerobot-data data/pusht
lerobot-train --dataset.repo_id=mine/pusht --dataset.root=data/pusht --output_dir=outputs/train/pusht_mine --policy.type=diffusion \
    --policy.push_to_hub=false --policy.device=cpu '--policy.down_dims=[16,32]' --policy.diffusion_step_embed_dim=16 \
    --policy.n_groups=4 --policy.num_inference_steps=5 --policy.n_action_steps=6 \
    '--policy.normalization_mapping={"STATE":"MIN_MAX","ENV":"MIN_MAX","ACTION":"MIN_MAX"}' \
    --batch_size=8 --num_workers=0 --steps=2 --save_freq=2 --eval_freq=2 --eval.n_episodes=1 --eval.batch_size=1 \
    --env.type=pusht --env.obs_type=environment_state_agent_pos --env.episode_length=8 --wandb.enable=false > lerobot.txt 2>&1
lerobot=lerobot:outputs/train/pusht_mine

say "robomimic's own trainer: two epochs of two steps, a rollout and a checkpoint after each"
python "$repository/scripts/collect.py" --task lift --episodes 2 --workers 1 --out data > collect.txt
$bring train-robomimic data/lift.hdf5 exp > robomimic.txt 2>&1
robomimic=robomimic:$(ls exp/lift_diffusion/*/models/model_epoch_1_lift_success_*.pth)

say "Diffusion Policy's own trainer, which PyPI does not have: two of its files"
mkdir -p data/outputs
cp -r "$repository"/tests/data/diffusion-policy-trainer/2026.11.28 data/outputs
unet=$(ls "$PWD"/data/outputs/*/*_train_diffusion_unet_*/checkpoints/epoch=*.ckpt)
transformer=$(ls data/outputs/*/*_train_diffusion_transformer_*/checkpoints/epoch=*.ckpt)

say "listed"
gpc doctor
gpc policies
gpc policies "$lerobot" "$robomimic" "diffusion_policy:$unet"

say "evaluated, each alone, by its own sampler"
gpc evaluate "policies=[$lerobot]" env=pusht sampler=native episodes=2 env.max_steps=24 run_dir=runs/lerobot-alone
gpc evaluate "policies=[diffusion_policy:$transformer]" env=pusht sampler=native episodes=2 env.max_steps=8 run_dir=runs/diffusion-alone
gpc evaluate "policies=[$robomimic]" sampler=native episodes=1 env.max_steps=8 run_dir=runs/robomimic-alone
need runs/{lerobot,diffusion,robomimic}-alone/{summary.json,report.html,episodes.mp4}

say "predicted from a LeRobotDataset"
gpc diagnose "policies=[pusht-flow,$lerobot]" env.n_action_steps=6 demonstrations=data/pusht run_dir=runs/predicted
need runs/predicted/errors.png

# NAME POLICIES KEYS...: two policies from the diagnosis to the report; what only a robot needs is in $robot
pair() {
    local name=$1 both=policies=[$2] port=$((8100 + RANDOM % 800))
    shift 2
    say "$name: diagnosed, composed, searched"
    gpc diagnose "$both" "$@" run_dir="runs/$name-diagnosis"
    gpc evaluate "$both" 'weights=[0.5,0.5]' "$@" episodes=2 run_dir="runs/$name-mixture"
    gpc search "$both" "$@" search=grid search.step=0.5 search.episodes=2 report.episodes=2 video=0 run_dir="runs/$name-search"
    need "runs/$name-diagnosis/diagnosis.json" "runs/$name-mixture/report.html" "runs/$name-search/curve.png"

    say "$name: served"
    gpc serve "$both" 'weights=[0.5,0.5]' "$names" port="$port" > "serve-$name.txt" 2>&1 &
    server=$!
    until grep -q "ws://127.0.0.1:$port" "serve-$name.txt"; do
        kill -0 $server || { cat "serve-$name.txt"; exit 1; }
        sleep 1
    done
    $bring client "$port"
    kill -TERM $server
    wait $server || [ $? -eq 143 ]

    say "$name: deployed on the simulated robot"
    gpc deploy robot=simulated "$both" 'weights=[0.5,0.5]' "$names" "${robot[@]}" mode=live seconds=2 run_dir="runs/$name-deployed"
    need "runs/$name-deployed/manifest.json"
}
trap 'kill ${server:-} 2> /dev/null || true' EXIT

names='rename_map={observation.state: agent_pos, observation.environment_state: keypoints}'
robot=(fps=10 safety.actions=absolute stitch.n_action_steps=6)
pair lerobot "pusht-flow,$lerobot" env.n_action_steps=6 env.max_steps=24
names='rename_map={}'
robot=(fps=10 safety.actions=absolute)
pair diffusion "diffusion_policy:$unet,diffusion_policy:$transformer" env=pusht env.max_steps=24
robot=(robot.settings.env=lift fps=20 'safety.actions=[relative,relative,relative,relative,relative,relative,absolute]')
pair robomimic "$robomimic,lift-flow" env=lift env.max_steps=8

say "reported, compared, replayed"
gpc compare "policies=[$robomimic,lift-flow]" env=lift episodes=2 env.max_steps=8 video=0 run_dir=runs/robomimic-compared
gpc report runs/*-alone runs/*-mixture runs/*-search
gpc replay runs/diffusion-mixture --episode 1 --trust
need study.html
say "done"
